"""Every kind of malformed input stops loading with file, line, what was found and what was expected."""

from __future__ import annotations

import json
import re

import pytest

from tss.data import Malformed, check_input, load_task
from tss.data.jsonl import MAX_LINE_BYTES
from tss.errors import DataError

TEXT = {"text": "fine", "label": "good"}
WORDS = {"tokens": ["Bob", "eats"], "ner_tags": ["B-PER", "O"]}
PAIR = {"source": "a", "target": "b"}


def write(folder, train, test=None):
    """A task folder; lines may be objects or raw bytes."""
    folder.mkdir(parents=True)
    for split, lines in (("train", train), ("validation", [train[0]]), ("test", test or [train[0]])):
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (folder / f"{split}.jsonl").write_bytes(b"\n".join(raw) + b"\n")


CASES = {
    "no JSON": (TEXT, b'{"text": "x"', "not JSON .* expected one JSON object per line"),
    "not UTF-8": (TEXT, b'{"text": "\xff", "label": "good"}', "not UTF-8 at byte 10"),
    "blank": (TEXT, b"", "blank line: expected a JSON object"),
    "a list": (TEXT, [1, 2], r"expected a JSON object .* found \[1, 2\] \(list\)"),
    "no label": (TEXT, {"text": "x"}, 'field "label" is missing: classification needs text, label; found text'),
    "a number as label": (TEXT, {"text": "x", "label": 1}, r'field "label" must be a string, found 1 \(int\)'),
    "null text": (TEXT, {"text": None, "label": "good"}, r'field "text" must be a string, found None \(NoneType\)'),
    "blank text": (TEXT, {"text": " \t", "label": "good"}, 'field "text" is empty'),
    "blank aspect": (TEXT, {**TEXT, "aspect": ""}, 'field "aspect" is empty'),
    "half a pair": (TEXT, b'{"text": "\\ud800", "label": "good"}', 'field "text" contains half of a surrogate pair'),
    "other kind's field": (
        TEXT,
        {**TEXT, "tokens": ["x"]},
        'field "tokens" belongs to another kind: .* classification',
    ),
    "other kind": (TEXT, PAIR, 'field "text" is missing'),
    "lengths": (
        WORDS,
        {"tokens": ["a", "b"], "ner_tags": ["O"]},
        "2 tokens but 1 ner_tags: expected one tag per token",
    ),
    "no words": (WORDS, {"tokens": [], "ner_tags": []}, 'field "tokens" is empty'),
    "a string of words": (
        WORDS,
        {"tokens": "a b", "ner_tags": ["O", "O"]},
        '"tokens" must be a list of strings, found',
    ),
    "a number as tag": (WORDS, {"tokens": ["a"], "ner_tags": [0]}, r'"ner_tags": item 0 must be a string .* found 0'),
    "a blank word": (
        WORDS,
        {"tokens": [" "], "ner_tags": ["O"]},
        '"tokens": item 0 must be a string that is not blank',
    ),
    "no BIO": (WORDS, {"tokens": ["a"], "ner_tags": ["PER"]}, "item 0 is 'PER', expected O, B-TYPE or I-TYPE"),
    "no type": (WORDS, {"tokens": ["a"], "ner_tags": ["B-"]}, "item 0 is 'B-', expected O, B-TYPE or I-TYPE"),
    "BILOU": (WORDS, {"tokens": ["a"], "ner_tags": ["U-PER"]}, "item 0 is 'U-PER', expected O, B-TYPE or I-TYPE"),
    "inside first": (
        WORDS,
        {"tokens": ["a", "b"], "ner_tags": ["O", "I-PER"]},
        "item 1 is 'I-PER' after 'O'; an entity begins with B-PER",
    ),
    "inside of another": (
        WORDS,
        {"tokens": ["a", "b"], "ner_tags": ["B-PER", "I-LOC"]},
        "item 1 is 'I-LOC' after 'B-PER'; an entity begins with B-LOC",
    ),
    "no target": (PAIR, {"source": "a"}, 'field "target" is missing: generation needs source, target'),
    "blank source": (PAIR, {"source": "", "target": "b"}, 'field "source" is empty'),
    "context of a wrong type": (PAIR, {**PAIR, "context": ["x"]}, 'field "context" must be a string'),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("case", CASES)
def test_malformed_lines(tmp_path, case, split):
    good, bad, message = CASES[case]
    lines = [good, bad, good]
    write(tmp_path / "fam" / "task", lines if split == "train" else [good, good], lines if split == "test" else None)
    with pytest.raises(DataError, match=message) as caught:
        load_task(tmp_path, "fam/task")
    assert caught.value.line == 2
    assert str(caught.value.path).endswith(f"fam/task/{split}.jsonl")
    assert str(caught.value).startswith(f"{caught.value.path}:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"text": "x", "lable": "good"}, r'the fields \(text, lable\) fit no kind of task; expected .*"text", "label"'),
        ({**TEXT, **PAIR}, "fit classification and generation at once"),
        (["x"], "expected a JSON object with the fields of a task"),
    ],
)
def test_a_first_line_that_fits_no_kind(tmp_path, first, message):
    write(tmp_path / "fam" / "task", [first, TEXT])
    with pytest.raises(DataError, match=message) as caught:
        load_task(tmp_path, "fam/task")
    assert caught.value.line == 1


def test_a_label_that_training_never_shows(tmp_path):
    write(tmp_path / "fam" / "task", [TEXT], [TEXT, {"text": "x", "label": "bad"}])
    with pytest.raises(DataError, match="label 'bad' never occurs in the training split, which has: good") as caught:
        load_task(tmp_path, "fam/task")
    assert (caught.value.path.name, caught.value.line) == ("test.jsonl", 2)


def test_an_entity_type_that_training_never_shows_but_not_its_continuation(tmp_path):
    longer = {"tokens": ["Bob", "Dole"], "ner_tags": ["B-PER", "I-PER"]}
    write(tmp_path / "fam" / "seen", [WORDS], [longer])
    assert load_task(tmp_path, "fam/seen").kind.labels == ("B-PER", "I-PER", "O")
    write(tmp_path / "fam" / "unseen", [WORDS], [WORDS, {"tokens": ["x"], "ner_tags": ["B-LOC"]}])
    with pytest.raises(DataError, match="label 'LOC' never occurs in the training split, which has: PER"):
        load_task(tmp_path, "fam/unseen")


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such data folder; expected <family>/<task>/\{train"):
        load_task(tmp_path / "nowhere", "fam/task")
    write(tmp_path / "fam" / "task", [TEXT])
    with pytest.raises(DataError, match="no task 'fam/tusk' here; there are: fam/task"):
        load_task(tmp_path, "fam/tusk")
    (tmp_path / "fam" / "task" / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"task: expected test\.jsonl in this folder, found none"):
        load_task(tmp_path, "fam/task")
    (tmp_path / "fam" / "task" / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"task: expected train\.jsonl in this folder, found none"):
        load_task(tmp_path, "fam/task")


@pytest.mark.parametrize("name", ["task", "a/b/c", "../x", "fam/..", "/task", "fam/"])
def test_names_are_family_and_task(tmp_path, name):
    with pytest.raises(DataError, match="is not named family/task"):
        load_task(tmp_path, name)


def test_an_empty_file_is_named(tmp_path):
    write(tmp_path / "fam" / "task", [TEXT])
    (tmp_path / "fam" / "task" / "test.jsonl").write_bytes(b"\n")
    with pytest.raises(DataError, match=r"test\.jsonl: the file is empty"):
        load_task(tmp_path, "fam/task")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "fam" / "task", [TEXT])
    file = tmp_path / "fam" / "task" / "validation.jsonl"
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(DataError, match=r"validation\.jsonl: cannot be read"):
        load_task(tmp_path, "fam/task")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": "a", "label": ' + b"1" * 5000 + b"}", "a number of thousands of digits"),
        (b'{"text": "a", "label": NaN}', "NaN is not valid JSON"),
        (b'{"text": "a", "label": -Infinity}', "-Infinity is not valid JSON"),
        (b'{"text": "a", "label": "b", "text": "c"}', "the key 'text' appears twice in an object"),
        (b'{"text": "a", "label": "b", "x": [{"y": 1, "y": 1}]}', "the key 'y' appears twice in an object"),
        (b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}', "more than the limit of 16,777,216"),
    ],
    ids=["deep", "digits", "nan", "infinity", "twice", "twice-inside", "long"],
)
def test_what_python_cannot_read_or_no_text_is_names_its_line(tmp_path, line, expected):
    write(tmp_path / "fam" / "task", [TEXT])
    file = tmp_path / "fam" / "task" / "test.jsonl"
    file.write_bytes(file.read_bytes() + line + b"\n")
    number = len(file.read_bytes().split(b"\n")) - 1
    with pytest.raises(DataError, match=rf"test\.jsonl:{number}: .*{re.escape(expected)}"):
        load_task(tmp_path, "fam/task")


@pytest.mark.parametrize("name", ["fam/" + "n" * 200, "fam/a\nb", "fam/a\x00b", "fam/\u202eb"])
def test_names_that_could_not_be_kept_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="a task's name is one line of at most 200 printable characters"):
        load_task(tmp_path, name)


def test_an_input_is_checked_as_an_example_is():
    assert check_input({"text": "a", "label": 3, "aspect": None}, "classification") == {"text": "a"}
    assert check_input({"tokens": ["a"], "ner_tags": ["X"]}, "extraction") == {"tokens": ["a"]}
    for example, kind, expected in (
        ({"label": "a"}, "classification", '"text" is missing'),
        ({"tokens": []}, "extraction", '"tokens" is empty'),
        ({"tokens": "a b"}, "extraction", '"tokens" must be a list'),
        ({"source": "\ud800"}, "generation", "half of a surrogate pair"),
        ({"source": "a", "tokens": ["a"]}, "generation", "belongs to another kind"),
    ):
        with pytest.raises(Malformed, match=expected):
            check_input(example, kind)
