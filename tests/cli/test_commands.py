"""Each command does what its help says, on a run of seconds."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading

import pytest
import yaml

from tss.cli.console import matrix_lines, plain_table
from tss.cli.run import default_folder
from tss.presets import study_names
from tss.report.tables import METRIC_NAMES
from tss.run.config import load_config
from tss.study.plan import load_study

HEAVY = ("torch", "transformers", "pydantic", "numpy", "rich", "yaml", "matplotlib")


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from tss.cli.main import main; code = main(['--help']); "
        f"print('heavy', [m for m in {HEAVY!r} if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "heavy [] 0" in done.stdout
    for command in ("run", "check", "study", "report", "predict", "serve", "tasks", "data", "presets", "env"):
        assert f"    {command} " in done.stdout


def test_run_prints_matrix_metrics_time_and_report(tss, tiny_options, tmp_path):
    done = tss("run", *tiny_options, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    stored = json.loads((tmp_path / "run" / "matrix.json").read_text())
    for row in stored["matrix"]:
        for value in row:
            assert value is None or f"{value:.1f}" in done.out
    for key in ("average", "learning", "forgetting"):
        line = next(line for line in done.out.splitlines() if line.startswith(METRIC_NAMES[key]))
        assert line.endswith(f" {stored['summary'][key]:.2f}")
    assert str(tmp_path / "run" / "report.html") in done.out
    assert (tmp_path / "run" / "report.html").is_file()
    assert "\x1b" not in done.out + done.err
    assert "time" in done.out


def test_run_takes_keys_before_and_after_options(tss, tiny_options, tmp_path):
    done = tss("run", "label=first", *tiny_options, "--out", tmp_path / "run", "tasks=[ner/people]", "--quiet")
    assert done.code == 0, done.err
    stored = json.loads((tmp_path / "run" / "matrix.json").read_text())
    assert (stored["label"], stored["tasks"]) == ("first", ["ner/people"])


def test_a_yaml_file_is_a_configuration(tss, tiny_options, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [asc/phones]\nlabel: from the file\n")
    done = tss("check", path, *tiny_options, "--no-steps")
    assert done.code == 0, done.err
    assert "asc/phones" in done.out
    assert "ner/people" not in done.out


def test_check_lists_tasks_and_estimates_from_real_steps(tss, tiny_options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = tss("check", *tiny_options)
    assert done.code == 0, done.err
    assert "asc/phones" in done.out
    assert "two training steps" in done.out
    assert "memory" in done.out
    assert "configuration and data are valid" in done.out
    assert list(tmp_path.iterdir()) == []


def test_report_of_one_run_and_of_two(tss, finished_run, tmp_path):
    done = tss("report", finished_run, "--out", tmp_path / "one")
    assert (done.code, done.out.strip()) == (0, str(tmp_path / "one" / "report.html"))
    done = tss("report", finished_run, finished_run, "--out", tmp_path / "two.html")
    assert done.code == 0, done.err
    assert "Runs side by side" in (tmp_path / "two.html").read_text()


def test_predict_keeps_order_and_answers_as_the_run_did(tss, finished_run, cli_data, tmp_path):
    reviews = [json.loads(line) for line in (cli_data / "asc/phones/test.jsonl").read_text().splitlines()]
    people = [json.loads(line) for line in (cli_data / "ner/people/test.jsonl").read_text().splitlines()]
    mixed = [row for pair in zip(reviews, people, strict=True) for row in pair]
    for row in mixed[1::2]:
        row["task"] = "ner/people"
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    words = ["--task", "asc/phones", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    done = tss("predict", finished_run, *words)
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in a.items() if k not in ("prediction", "task")} for a in answers] == [
        {k: v for k, v in row.items() if k != "task"} for row in mixed
    ]
    expected = [
        [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
        for path in sorted((finished_run / "predictions").glob("*.jsonl"))
    ]
    assert [a["prediction"] for a in answers[0::2]] == expected[0]
    assert [a["prediction"] for a in answers[1::2]] == expected[1]


def test_predict_answers_each_row_whatever_the_batches(tss, finished_run, tmp_path):
    lengths = [1, 6, 3, 5, 2, 4]
    rows = [{"task": "ner/people", "tokens": ["Alice", *["visits"] * (length - 1)]} for length in lengths]
    rows.insert(2, {"text": "the phone is good", "task": "asc/phones"})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = tss("predict", finished_run, "--input", tmp_path / "in.jsonl")
    assert done.code == 0, done.err
    answers = [json.loads(line)["prediction"] for line in done.out.splitlines()]
    assert answers.pop(2) in ("plus", "minus")
    assert [len(answer) for answer in answers] == lengths


def test_predict_reads_and_writes_streams(tss, finished_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"text": "the phone is good"}\n'))
    done = tss("predict", finished_run, "--task", "asc/phones")
    assert done.code == 0, done.err
    assert json.loads(done.out)["prediction"] in ("plus", "minus")


def test_tasks_lists_kinds_and_sizes(tss, cli_data):
    done = tss("tasks", "--data", cli_data)
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()[1:]] == [
        ["asc/phones", "classification", "2", "12", "4", "4"],
        ["ner/people", "extraction", "3", "12", "4", "4"],
    ]


def test_presets_lists_and_prints(tss):
    done = tss("presets")
    assert done.code == 0
    assert any(line.startswith("mixed.paper  ") for line in done.out.splitlines())
    studies = done.out.splitlines()[done.out.splitlines().index("") + 1 :]
    assert studies[0].split() == ["study", "what"]
    assert [line.split()[0] for line in studies[1:]] == study_names()
    done = tss("presets", "ccd", "--variant", "paper")
    assert done.out.startswith("# ccd.paper for backbone bart-large and method tss\n")
    assert "`extends: ccd.paper`" in done.out
    assert "score_lr: 0.0005" in done.out
    assert load_config(yaml.safe_load(done.out)) == load_config("ccd.paper")


def test_presets_prints_a_study_that_runs_when_saved(tss, tmp_path):
    done = tss("presets", "labelled")
    assert done.code == 0
    (tmp_path / "mine.yaml").write_text(done.out)
    assert load_study(tmp_path / "mine.yaml") == load_study("labelled")


def test_presets_prints_a_file_too(tss, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quick\nseed: 7\n")
    done = tss("presets", tmp_path / "mine.yaml")
    assert done.out.startswith(f"# {tmp_path / 'mine.yaml'} for backbone embedded and method tss\n")
    assert yaml.safe_load(done.out)["seed"] == 7


def test_env_names_versions_and_kernels(tss):
    done = tss("env")
    assert done.code == 0
    for word in ("torch ", "transformers ", "threads", "processors", "kernels"):
        assert word in done.out


def test_default_folders_never_collide_and_resume_finds_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_folder("demo-tss", resume=False).name == "demo-tss"
    (tmp_path / "runs" / "demo-tss").mkdir(parents=True)
    assert default_folder("demo-tss", resume=False).name == "demo-tss-2"
    assert default_folder("demo-tss", resume=True).name == "demo-tss"
    (tmp_path / "runs" / "demo-tss-2").mkdir()
    assert default_folder("demo-tss", resume=True).name == "demo-tss-2"


@pytest.mark.parametrize(("count", "columns"), [(3, 80), (40, 80), (40, 400)])
def test_the_matrix_fits_and_shows_every_value(count, columns):
    matrix = [[round(100 * i / count + j / 10, 1) if j <= i else None for j in range(count)] for i in range(count)]
    lines = matrix_lines([f"family/a_task_with_a_long_name_{i}" for i in range(count)], matrix, columns)
    assert max(map(len, lines)) <= columns
    cells = [cell for line in lines if line[:2].strip().isdigit() for cell in line[33:].split()]
    assert sorted(map(float, cells)) == sorted(v for row in matrix for v in row if v is not None)


def test_a_plain_table_is_aligned():
    assert plain_table(["a", "n"], [["long", "1"], ["b", "22"]], right=(1,)) == ["a      n", "long   1", "b     22"]


def test_run_without_arguments_prints_the_help(tss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = tss("run")
    assert done.code == 2
    assert "usage: tss run" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_resume_reads_the_runs_own_configuration(tss, tiny_options, tmp_path):
    folder = tmp_path / "run"
    assert tss("run", *tiny_options, "tasks=[asc/phones]", "--out", folder, "--quiet").code == 0
    done = tss("run", "--out", folder, "--resume", "--quiet")
    assert done.code == 0, done.err
    done = tss("run", "--out", folder, "--resume", "--quiet", "training.epochs=2")
    assert "training.epochs: 1 in the run, 2 now" in done.err
    (folder / "config.yaml").write_text("seed: 7\n")
    done = tss("run", "--out", folder, "--resume", "--quiet")
    assert (done.code, "config.yaml is not what the run wrote" in done.err) == (1, True)


def test_a_resume_without_a_folder_names_the_last_run(tss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo-tss" / "state").mkdir(parents=True)
    (tmp_path / "runs" / "demo-tss" / "state" / "run.json").write_text("{}")
    done = tss("run", "--resume")
    assert done.code == 1
    assert "name the run folder with --out DIR, for example --out runs/demo-tss" in done.err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_says_how_to_go_on(tss, tiny_options, tmp_path, monkeypatch, name):
    number = signal.Signals[name]

    def stop(*_):
        signal.raise_signal(number)
        threading.Event().wait(60)  # the handler may run a little later, and then interrupts this

    monkeypatch.setattr("tss.run.sequence.learn", stop)
    before = signal.getsignal(number)
    done = tss("run", *tiny_options, "--out", tmp_path / "run", "--quiet")
    assert done.code == 128 + number
    assert f"stopped by {name}; continue with: tss run --out {tmp_path / 'run'} --resume" in done.err
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    assert tss("run", "--out", tmp_path / "run", "--resume", "--quiet").code == 0


def test_env_ends_silently_where_its_reader_leaves():
    words = f"{sys.executable} -m tss.cli.main env | head -n 1"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_a_damaged_run_is_reported_and_told(tss, finished_run, tmp_path):
    import shutil

    for file, old, new in (
        ("matrix.json", '"label": ""', '"label": "x"'),
        ("predictions/01-asc-phones.jsonl", '"prediction"', '"predictiom"'),
        ("config.yaml", "bottleneck: 4", "bottleneck: 5"),
        ("events.jsonl", '"task_begin"', '"task_begim"'),
        ("state/run.json", '"finished": true', '"finished": false'),
    ):
        copy = tmp_path / file.replace("/", "-")
        shutil.copytree(finished_run, copy)
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new, 1))
        done = tss("report", copy, "--out", tmp_path / "out")
        assert done.code == 1
        assert f"{copy}: " in done.err
        assert file in done.err
        assert "Damaged: " in (tmp_path / "out" / "report.html").read_text()
