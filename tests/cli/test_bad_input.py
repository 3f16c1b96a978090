"""Bad input ends in one clear line and a non-zero exit code, without a traceback unless it is asked for."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest

from tss.cli.main import main
from tss.errors import DataError


def only_line(done) -> str:
    """The one line on standard error of a command that failed."""
    assert done.code not in (0, 70), done.err
    assert "Traceback" not in done.err
    (line,) = done.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rnu"], "no command 'rnu'; did you mean 'run'?"),
        (["run", "mixd"], "did you mean 'mixed'?"),
        (["run", "mixed", "--variant", "papr"], "it has: "),
        (["run", "--variant", "paper"], "needs a preset"),
        (["run", "asc", "ner"], "one configuration or preset at a time"),
        (["run", "training.epoch=3"], "did you mean 'training.epochs'?"),
        (["run", "metod=tss"], "did you mean 'method'?"),
        (["run", "training.epochs=many"], "training.epochs"),
        (["run", "--method", "ewcc"], "there are: tss"),
        (["run", "--bakcbone", "x"], "did you mean '--backbone'?"),
        (["run", "--data", "/no/such/folder"], "/no/such/folder"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["tasks", "--data", "/no/such/folder"], "/no/such/folder"),
        (["check", "--data", "/no/such/folder"], "/no/such/folder"),
        (["report", "/no/such/run"], "/no/such/run: no such run folder"),
        (["report"], "RUN"),
        (["predict", "/no/such/run", "--task", "x", "--input", "/no/such/file"], "/no/such/file"),
        (["presets", "ascc"], "did you mean 'asc'?"),
        (["presets", "a", "b"], "unexpected argument 'b'"),
    ],
)
def test_one_line_that_names_the_remedy(tss, words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in only_line(tss(*words))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def broken_data(cli_data, tmp_path):
    """A copy of the data with a malformed line, and a function that writes it."""
    root = tmp_path / "data"
    shutil.copytree(cli_data, root)

    def write(line: str):
        path = root / "asc" / "phones" / "train.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
        return root

    return write


@pytest.mark.parametrize(
    "line", ['{"text": "half', '{"text": "no label"}', '["a list"]', '{"text": "a", "label": "plus", "text": "b"}']
)
@pytest.mark.parametrize("command", ["run", "check", "tasks"])
def test_a_malformed_line_is_named_before_anything_is_trained(tss, broken_data, tmp_path, line, command):
    words = ["--data", broken_data(line)] + (["--out", tmp_path / "out", "--quiet"] if command == "run" else [])
    assert "asc/phones/train.jsonl:2: " in only_line(tss(command, *words))
    assert not (tmp_path / "out" / "events.jsonl").exists()


def test_missing_tasks_are_listed_with_the_way_out(tss, tiny_options, tmp_path):
    words = ["tasks=[asc/phones, asc/ipod]", *tiny_options, "--out", tmp_path / "out", "--quiet"]
    line = only_line(tss("run", *words))
    assert "1 of 2 tasks" in line
    assert "asc/ipod" in line
    assert "--available-only" in line
    done = tss("run", *words, "--available-only")
    assert done.code == 0, done.err
    assert "left out" in done.err
    assert json.loads((tmp_path / "out" / "matrix.json").read_text())["tasks"] == ["asc/phones"]


def test_a_preset_of_real_data_without_data_says_where_to_name_it(tss):
    assert "--data DIR" in only_line(tss("run", "ner"))


@pytest.mark.parametrize(
    "words", [["check", "mixed.quick"], ["run", "mixed.quick"], ["check", "ner", "--available-only"]]
)
def test_tasks_that_are_not_generated_say_so_soon(tss, words):
    done = tss(*words)
    line = only_line(done)
    assert "tasks of the sequence are not generated ones" in line
    assert "name the data folder that has them, with --data DIR; `tss data get --to DIR` creates" in line
    assert len(line) < 300
    assert done.out == ""


def test_tasks_of_the_paper_say_that_they_can_be_created(tss):
    line = only_line(tss("check", "mixed.paper"))
    assert line.endswith("with --data DIR; `tss data get --to DIR` creates them")


def test_a_folder_without_tasks_is_said_to_have_none(tss, tmp_path):
    assert "It has: no task (<family>/<task>/train.jsonl)" in only_line(tss("check", "demo", "--data", tmp_path))


@pytest.mark.parametrize(
    ("command", "out", "expected"),
    [
        ("report", "file", "file is a file where a folder is needed; name a folder, or a file that ends in .html"),
        ("report", "file/below", "file is a file where a folder is needed"),
        ("report", "taken", "plots is a file where a folder is needed"),
        ("report", "taken/page.html", "is a folder where the report would be written"),
        ("run", "file", "file is a file where a folder is needed; name another folder"),
        ("run", "file/below", "file is a file where a folder is needed"),
        ("predict", "file/below", "file is a file where a folder is needed; name another --output"),
    ],
)
def test_an_output_that_cannot_be_is_refused_at_once(tss, tiny_options, finished_run, tmp_path, command, out, expected):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "page.html").mkdir(parents=True)
    if out == "taken":
        (tmp_path / "taken" / "plots").write_text("mine")
    words = {
        "report": ["report", finished_run, "--out", tmp_path / out],
        "run": ["run", *tiny_options, "--out", tmp_path / out, "--quiet"],
        "predict": ["predict", finished_run, "--output", tmp_path / out],
    }[command]
    assert expected in only_line(tss(*words))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_run_in_the_folder_is_refused(tss, tiny_options, finished_run):
    assert "--resume" in only_line(tss("run", *tiny_options, "--out", finished_run, "--quiet"))


def test_resume_with_another_configuration_is_refused_and_shows_the_difference(tss, tiny_options, finished_run):
    before = (finished_run / "matrix.json").read_bytes()
    line = only_line(tss("run", *tiny_options, "seed=7", "--out", finished_run, "--resume", "--quiet"))
    assert "seed: 2021 in the run, 7 now" in line
    assert (finished_run / "matrix.json").read_bytes() == before


def test_resume_of_nothing_is_refused(tss, tiny_options, tmp_path):
    assert "nothing to resume" in only_line(tss("run", *tiny_options, "--out", tmp_path / "no", "--resume", "--quiet"))


def test_report_of_a_folder_that_is_no_run(tss, tmp_path):
    assert "not a run folder" in only_line(tss("report", tmp_path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "good"', "in.jsonl:2: not JSON (Expecting ',' delimiter at character 16)"),
        ("[1]", "in.jsonl:2: expected a JSON object"),
        (
            '{"text": "good", "task": "asc/x"}',
            "in.jsonl:2: task 'asc/x' is not learned in this folder; it has: asc/phones",
        ),
        ('{"tokens": ["good"]}', '"text" is missing: prediction of classification needs text; found tokens (task asc'),
        ('{"task": "ner/people", "text": "a"}', "prediction of extraction needs tokens; found text (task ner/people)"),
        ("{}", "prediction of classification needs text; found no field"),
        ('{"text": "a", "tokens": ["b"]}', "the task is classification as the run learned it"),
        ('{"task": "ner/people", "tokens": "good"}', 'in.jsonl:2: field "tokens" must be a list'),
    ],
)
def test_predict_names_the_line(tss, finished_run, tmp_path, line, expected):
    (tmp_path / "in.jsonl").write_text('{"text": "the phone is good"}\n' + line + "\n")
    done = tss("predict", finished_run, "--task", "asc/phones", "--input", tmp_path / "in.jsonl")
    assert expected in only_line(done)
    assert done.out == ""


def test_predict_needs_a_task(tss, finished_run, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n')
    assert "give --task NAME" in only_line(tss("predict", finished_run, "--input", tmp_path / "in.jsonl"))


def test_predict_checks_the_task_before_it_reads(tss, finished_run, tmp_path):
    (tmp_path / "in.jsonl").write_text("no JSON\n")
    done = tss("predict", finished_run, "--task", "asc/phone", "--input", tmp_path / "in.jsonl")
    assert "--task: task 'asc/phone' is not learned in this folder; it has: asc/phones" in only_line(done)


def test_predict_from_a_damaged_run_names_the_file(tss, finished_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    path = sorted((copy / "tasks").glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n')
    done = tss("predict", copy, "--task", "asc/phones", "--input", tmp_path / "in.jsonl")
    assert path.name in only_line(done)


def test_debug_shows_the_traceback(tss, monkeypatch):
    with pytest.raises(DataError):
        tss("tasks", "--data", "/no/such/folder", "--debug")
    monkeypatch.setenv("TSS_DEBUG", "1")
    with pytest.raises(DataError):
        tss("tasks", "--data", "/no/such/folder")


def test_a_package_that_is_broken_is_not_called_missing(tss, monkeypatch):
    def fail(*_, **__):
        try:
            raise RuntimeError("built for another torch")
        except RuntimeError as error:
            raise ModuleNotFoundError("could not import module") from error

    def missing(*_, **__):
        raise ModuleNotFoundError("no module named scipy", name="scipy")

    def interrupt(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("could not import module") from error

    seen = []
    for effect in (fail, missing, interrupt):
        monkeypatch.setattr("tss.data.list_tasks", effect)
        seen.append(tss("tasks"))
    assert [done.code for done in seen] == [1, 1, 130]
    assert "a package cannot be imported (RuntimeError: built for another torch)" in seen[0].err
    assert seen[1].err == "tss: the package scipy is not installed: pip install 'tss[train]'\n"
    assert seen[2].err == "tss: interrupted\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_an_output_that_was_closed_is_no_failure(name, monkeypatch):
    monkeypatch.setattr(sys, name, None)
    assert main(["--version"]) == 0
    assert main(["presets", "nothing"]) == 1


def test_an_output_without_a_character_is_no_failure(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["presets"]) == 0
    print("\u2013", flush=True)
    assert written.getvalue().endswith(b"\\u2013\n")


def test_a_folder_that_has_no_tasks_says_what_it_is(tss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tss("predict", "nowhere", "--task", "asc/a").err == f"tss: nowhere: no such folder in {tmp_path}\n"
    (tmp_path / "study.json").touch()
    assert "is the folder of a study: name one of its runs" in tss("predict", tmp_path, "--task", "asc/a").err


@pytest.mark.parametrize("command", ["run", "study"])
def test_an_output_that_is_a_link_to_nothing_is_named(tss, tiny_options, tmp_path, command):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    words = tiny_options if command == "run" else ["demo"]
    done = tss(command, *words, "--out", tmp_path / "link")
    assert done.code == 1
    assert f"{tmp_path / 'link'} is not a folder, and one is needed there; name another folder" in done.err


def test_check_refuses_what_run_refuses(tss, tiny_options):
    for words, message in (
        (["training.metric=bogus"], "metric='bogus' is not one of"),
        (["device=gpu"], "device: no device 'gpu'"),
        (["overrides={asc/phone: {epochs: 2}}"], "did you mean 'asc/phones'"),
    ):
        done = tss("check", "--no-steps", *tiny_options, *words)
        assert done.code == 1
        assert message in done.err
        assert "are valid" not in done.out


def test_a_fault_in_tss_is_one_line_too(tss, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("tss.data.list_tasks", fail)
    done = tss("tasks")
    assert done.code == 70
    assert done.err == "tss: RuntimeError: two lines (unexpected; --debug shows the traceback)\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "3"], "configuration keys are written key=value: seed=3"),
        (["--seed=3"], "configuration keys are written key=value: seed=3"),
        (["--epochs", "3"], "key=value: training.epochs=3"),
        (["--bottleneck", "8"], "key=value: adapters.bottleneck=8"),
        (["tasks=asc/phones"], "write tasks=[asc/phones]"),
        (["tasks=[asc/phone]"], "did you mean 'asc/phones'?"),
        (["soft_mask=none"], "did you mean 'method_options.soft_mask'?"),
        (["method_options.soft_mask=off"], "YAML reads off, no and false as booleans"),
        (["bottlenek=3"], "did you mean 'adapters.bottleneck'?"),
        (["epochs=3"], "did you mean 'training.epochs'?"),
        (["adapters.bottleneck=1e11"], "write it out: adapters.bottleneck=100000000000"),
        (["adapters.bottleneck=100000000000"], "is more than 65,536"),
        (["generation.num_beams=100000"], "less than or equal to 256"),
        (["adapters.sites=nothing"], "no module name of"),
        (["adapters.sites=nothing", "zero_shot=true"], "no module name of"),
        ([r"adapters.sites='(.|\w)*\W'"], "tries too many ways to match"),
        (["adapters.threshold=.nan"], "finite number"),
        (["fields={text: body}"], "a field map is for hub data sets"),
        (["--data", "hub:x", "tasks=[asc/a, asc/b]"], "is one data set with one task, but 2 names were given"),
        ([f"seed={'9' * 5000}"], "a number of thousands of digits"),
        ([f"label={'[' * 3000}"], "nested too deeply"),
        (["label=2021-99-99"], "quote it to keep it as text"),
    ],
)
def test_the_right_spelling_is_named(tss, tiny_options, tmp_path, words, expected):
    done = tss("run", *tiny_options, *words, "--out", tmp_path / "out", "--quiet")
    line = only_line(done)
    assert expected in line
    assert len(line) < 2000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 10)) for c in range(97, 107)),
         "more than 100,000 values, counting what aliases repeat"),
        (b"label: &a [*a]\n", "more than 100,000 values"),
        (b"seed: 1\nseed: 2\n", "key 'seed' appears twice"),
        (b"1: 2\n", "the key 1 is not a string"),
        ("seed: 1\n".encode("utf-16"), "not UTF-8"),
        (b"label: " + b"a" * 2_000_000, "more than the 1,048,576"),
        (b"label: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
    ids=["aliases", "itself", "twice", "number", "utf-16", "large", "object"],
)  # fmt: skip
def test_a_hostile_configuration_file_is_one_line(tss, tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    assert f"{path}: " in (line := only_line(tss("run", path, "--out", tmp_path / "out")))
    assert expected in line


@pytest.mark.parametrize("name", ["n" * 197, "a\nb", "a\tb", "a\u2028b"])
def test_a_name_that_could_not_be_kept_is_refused_before_training(tss, tiny_options, cli_data, tmp_path, name):
    root = tmp_path / "data"
    shutil.copytree(cli_data, root)
    (root / "ner" / "people").rename(root / "ner" / name)
    line = only_line(tss("run", *tiny_options, "--data", root, "--out", tmp_path / "out", "--quiet"))
    assert "a task's name is one line of at most 200 printable characters" in line
    assert not (tmp_path / "out").exists()


def test_a_long_name_is_learned(tss, tiny_options, cli_data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(cli_data / "asc", root / "asc")
    (root / "asc" / "phones").rename(root / "asc" / ("n" * 196))
    done = tss("run", *tiny_options, "--data", root, "--out", tmp_path / "out", "--quiet")
    assert done.code == 0, done.err


def test_windows_is_told_what_is_missing(tss, monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    assert "WSL" in only_line(tss("run", "demo"))
