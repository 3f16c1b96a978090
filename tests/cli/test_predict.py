"""`tss predict` reads as training reads, writes a file at once or not at all, and says which line is to blame."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from tss.cli import predict
from tss.cli.main import main
from tss.cli.predict import SKIPPED
from tss.data import jsonl
from tss.run import answering
from tss.run.learned import Learned

GOOD = b'{"text": "the phone is good"}'
BAD = {
    "no JSON": (b'{"text": ', "not JSON"),
    "blank": (b" ", "blank line"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "digits": (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "thousands of digits"),
    "not a number": (b'{"text": "a", "n": NaN}', "NaN is not valid JSON"),
    "twice": (b'{"text": "a", "text": "b"}', "'text' appears twice"),
    "no object": (b"3", "expected a JSON object, found int"),
    "type": (b'{"text": ["a"]}', 'field "text" must be a string'),
    "aspect": (b'{"text": "a", "aspect": 3}', 'field "aspect" must be a string'),
    "empty": (b'{"text": ""}', 'field "text" is empty'),
    "surrogate": (rb'{"text": "\ud800"}', "half of a surrogate pair"),
    "surrogate elsewhere": (rb'{"text": "a", "note": "\ud800"}', "half of a surrogate pair"),
    "bytes": (b'{"text": "\xff"}', "not UTF-8"),
    "kind": (b'{"text": "a", "tokens": ["a"]}', "belongs to another kind"),
    "task": (b'{"text": "a", "task": 3}', "task 3 is not learned"),
    "answered": (b'{"text": "a", "prediction": "b"}', '"prediction" is in the line'),
}


def ask(tss, run, tmp_path, *lines, more=()):
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return tss("predict", run, "--task", "asc/phones", "--input", tmp_path / "in.jsonl", *more)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_line_is_named_and_nothing_is_written(tss, finished_run, tmp_path, what):
    line, expected = BAD[what]
    done = ask(tss, finished_run, tmp_path, GOOD, line, GOOD, more=["--output", tmp_path / "out.jsonl"])
    assert done.code == 1
    assert f"{tmp_path / 'in.jsonl'}:2: " in done.err
    assert expected in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_lines_can_be_left_out(tss, finished_run, tmp_path):
    lines = [GOOD, *(line for line, _ in BAD.values()), GOOD]
    done = ask(tss, finished_run, tmp_path, *lines, more=["--skip-bad"])
    assert done.code == SKIPPED
    assert len(done.out.splitlines()) == 2
    assert [f"in.jsonl:{number}: " in done.err for number in range(1, len(lines) + 1)] == [
        False, *[True] * len(BAD), False,
    ]  # fmt: skip
    assert f"{len(BAD)} of {len(lines)} lines were skipped" in done.err
    assert ask(tss, finished_run, tmp_path, GOOD, more=["--skip-bad"]).code == 0


def test_lines_are_those_of_training(tss, finished_run, tmp_path):
    """A byte order mark is no text, and a line separator inside a text ends no line."""
    row = {"text": "the \u2028 phone \u0085 is \x0c good", "note": "\u2029"}
    done = ask(tss, finished_run, tmp_path, b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode())
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert {key: answer[key] for key in row} == row


def test_the_input_is_never_written_over(tss, finished_run, tmp_path):
    for name in ("in.jsonl", "link.jsonl", "hard.jsonl"):
        (tmp_path / "in.jsonl").write_bytes(GOOD + b"\n")
        if name == "link.jsonl":
            (tmp_path / name).symlink_to(tmp_path / "in.jsonl")
        elif name == "hard.jsonl":
            os.link(tmp_path / "in.jsonl", tmp_path / name)
        done = ask(tss, finished_run, tmp_path, GOOD, more=["--output", tmp_path / name])
        assert done.code == 1
        assert "is the input, which is never overwritten" in done.err
        assert (tmp_path / "in.jsonl").read_bytes() == GOOD + b"\n"


def test_an_output_that_cannot_be_written_is_named_at_once(tss, finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Learned, "answer", lambda *_: pytest.fail("computed"))
    assert "is a folder" in ask(tss, finished_run, tmp_path, GOOD, more=["--output", tmp_path]).err
    (tmp_path / "file").write_text("")
    assert (
        "is a file where a folder is needed"
        in ask(tss, finished_run, tmp_path, GOOD, more=["--output", tmp_path / "file" / "x"]).err
    )


def test_an_output_that_is_no_file_is_not_replaced(tss, finished_run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    done = ask(tss, finished_run, tmp_path, GOOD, more=["--output", pipe])
    assert done.code == 0, done.err
    assert json.loads(os.read(reader, 4096))["text"] == "the phone is good"
    os.close(reader)


def test_a_row_that_fails_later_is_named(tss, finished_run, tmp_path, monkeypatch):
    answer_batch = answering.answer_batch

    def fail_at_bad(model, rows, *more):
        if any("bad" in row.example["text"] for row in rows):
            raise ValueError("a prompt of 99 tokens fills the model's 64 positions")
        return answer_batch(model, rows, *more)

    monkeypatch.setattr(answering, "answer_batch", fail_at_bad)
    done = ask(tss, finished_run, tmp_path, GOOD, b'{"text": "the phone is bad"}', GOOD)
    assert done.code == 1
    assert "in.jsonl:2: cannot be answered: a prompt of 99 tokens" in done.err
    done = ask(tss, finished_run, tmp_path, GOOD, b'{"text": "the phone is bad"}', GOOD, more=["--skip-bad"])
    assert (done.code, len(done.out.splitlines())) == (SKIPPED, 2)


def test_any_field_may_name_the_task(tss, finished_run, tmp_path):
    line = b'{"text": "the phone is good", "skill": "asc/phones", "task": 7}'
    done = ask(tss, finished_run, tmp_path, line, GOOD, more=["--task-field", "skill"])
    assert done.code == 0, done.err
    first, second = map(json.loads, done.out.splitlines())
    assert (first["skill"], first["task"], second["skill"]) == ("asc/phones", 7, "asc/phones")
    assert first["prediction"] == second["prediction"]
    assert ask(tss, finished_run, tmp_path, b'{"text": "the phone is good", "task": null}').code == 0
    assert "--task-field is empty" in ask(tss, finished_run, tmp_path, line, more=["--task-field", ""]).err
    for field in ("text", "tokens", "prediction"):
        done = ask(tss, finished_run, tmp_path, line, more=["--task-field", field])
        assert (done.code, f"--task-field {field} is a field" in done.err) == (1, True)


def test_inputs_that_are_not_read_to_the_end_are_counted(tss, finished_run, tmp_path):
    long = json.dumps({"text": "the phone is good " * 200}).encode()
    done = ask(tss, finished_run, tmp_path, GOOD, long, GOOD)
    assert done.code == 0
    assert len(done.out.splitlines()) == 3
    assert done.err == "tss: 1 of 3 inputs were longer than their task reads and were truncated\n"
    assert ask(tss, finished_run, tmp_path, GOOD).err == ""


def test_standard_output_is_utf_8_in_any_locale(finished_run, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"text": "caf\u00e9 \U0001f600"}\n', encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert main(["predict", str(finished_run), "--task", "asc/phones", "--input", str(tmp_path / "in.jsonl")]) == 0
    assert json.loads(written.getvalue().decode())["text"] == "caf\u00e9 \U0001f600"


def test_confidence_is_told_where_it_is_asked_for(tss, finished_run, tmp_path):
    lines = [GOOD, b'{"tokens": ["Alice", "visits", "Paris"], "task": "ner/people"}']
    done = ask(tss, finished_run, tmp_path, *lines, more=["--confidence"])
    label, tags = (json.loads(line)["confidence"] for line in done.out.splitlines())
    assert 0.5 <= label <= 1
    assert len(tags) == 3
    assert all(1 / 3 <= tag <= 1 for tag in tags)
    assert "confidence" not in ask(tss, finished_run, tmp_path, GOOD).out
    sure = b'{"text": "a", "confidence": 0.1}'
    assert json.loads(ask(tss, finished_run, tmp_path, sure).out)["confidence"] == 0.1
    assert '"confidence" is in the line' in ask(tss, finished_run, tmp_path, sure, more=["--confidence"]).err


@pytest.fixture
def small_windows(monkeypatch):
    """The most lines that were asked at once, in windows of three."""
    most, ask_learned = [0], Learned.answer

    def counted(self, questions):
        most[0] = max(most[0], len(questions))
        return ask_learned(self, questions)

    monkeypatch.setattr(predict, "WINDOW", 3)
    monkeypatch.setattr(Learned, "answer", counted)
    return most


def test_many_lines_are_answered_window_by_window(tss, finished_run, tmp_path, small_windows):
    lines = [json.dumps({"text": f"the phone is {'good ' * (i % 4)}", "i": i}).encode() for i in range(10)]
    whole = ask(tss, finished_run, tmp_path, *lines, more=["--output", tmp_path / "out.jsonl"])
    assert whole.code == 0, whole.err
    assert [json.loads(line)["i"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == list(range(10))
    assert small_windows == [3]


def test_a_file_is_whole_or_not_there_and_a_stream_has_what_was_answered(
    tss, finished_run, tmp_path, small_windows, monkeypatch
):
    lines = [*[GOOD] * 4, b"3"]
    (tmp_path / "out.jsonl").write_text("before")
    done = ask(tss, finished_run, tmp_path, *lines, more=["--output", tmp_path / "out.jsonl"])
    assert (done.code, small_windows) == (1, [0])  # every line of a file is looked at first
    text = b"\n".join(lines).decode()
    for more in (["--output", tmp_path / "out.jsonl"], []):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        done = tss("predict", finished_run, "--task", "asc/phones", *more)
        assert done.code == 1
        assert "<stdin>:5: " in done.err
        assert len(done.out.splitlines()) == (0 if more else 3)
    assert (tmp_path / "out.jsonl").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_a_line_without_end_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 10)
    text = b"1\n" + b"2" * 1000 + b"\n\n3"
    assert list(jsonl.stream_lines(io.BytesIO(text), "x")) == [(1, b"1"), (2, b"2" * 12), (3, b""), (4, b"3")]
