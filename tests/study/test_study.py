"""`tss study` in real processes: killed, stopped and gone on with, its runs are those of a run by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_resume import contents, story
from tss.cli.main import main
from tss.io import locked
from tss.run.sequence import run_sequence
from tss.study.folder import StudyFolder


def begin(*words: object, directory: Path | None = None, **settings: Any) -> subprocess.Popen[str]:
    """`tss study …` in a process of its own; `directory` is where relative paths are meant."""
    command = [sys.executable, "-m", "tss.cli.main", "study", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=directory, **settings)


def wait_for_step(folder: Path, process: subprocess.Popen[str], steps: int = 1) -> None:
    """Until some run below the folder that is not at its end has written so many optimizer steps."""
    while process.poll() is None:
        texts = [path.read_text() for path in folder.glob("runs/*/events.jsonl")]
        if any(text.count('"event": "step"') >= steps and '"run_end"' not in text for text in texts):
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
def test_killed_and_stopped_a_study_goes_on_and_ends_as_if_it_never_was(study_file, tmp_path, capsys):
    path, out = study_file(methods=["mtl", "ncl"]), tmp_path / "out"
    killed = begin(path, "--out", out)
    wait_for_step(out, killed, 3)
    killed.kill()
    killed.communicate()
    for lock in out.glob("runs/*.lock"):  # the run's own process stops without its starter
        with locked(lock, wait=True):
            pass
    assert not all(StudyFolder(out).finished(cell) for cell in StudyFolder(out).cells())

    stopped = begin("--out", out, "--workers", 1, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    # Its first line comes after it has begun to watch for signals; steps may be there from before.
    assert "study folder" in stopped.stderr.readline()
    wait_for_step(out, stopped, 9)
    stopped.send_signal(signal.SIGTERM)  # as `kill` does to what a script has started in the background
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert not StudyFolder(out).finished(StudyFolder(out).cells()[0])
    assert f"continue with: tss study --out {out} --workers 1" in said
    with locked(next(out.glob("runs/*.lock")), wait=False):  # nothing runs any more
        pass

    assert main(["study", "--out", str(out), "--quiet"]) == 0
    folder = StudyFolder(out)
    for cell in folder.cells():
        whole = tmp_path / "whole" / cell.name
        run_sequence(cell.config, whole)
        assert contents(folder.run(cell)) == contents(whole)
        assert story(folder.run(cell)) == story(whole)
    table = capsys.readouterr().out
    assert "| mtl | 1 |" in table
    assert "| ncl | 1 |" in table

    # all is finished: nothing runs, and `tss report` writes the same page
    page = (out / "report.html").read_bytes()
    assert main(["study", str(path), "--out", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == page
    assert main(["report", str(out), str(out / "runs" / "ncl-1-2021")]) == 1
    assert main(["study", str(path), "training.epochs=3", "--out", str(out)]) == 1
    assert "training.epochs: 2 there, 3 now" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_fails_twice_is_listed_and_the_others_finish(study_file, tmp_path, capsys):
    """From another directory than the data's, with two workers."""
    broken = {"method": "ncl", "training": {"adapter_lr": 3e38}}
    path, out = study_file(methods={"broken": broken, "ncl": {}}, changes={"training": {"epochs": 1}}), tmp_path / "out"
    process = begin(path.name, "--out", "out", "--workers", 2, directory=tmp_path)
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.count("broken-1-2021 failed and will be tried once more: task asc/phones:") == 1
    assert said.count("broken-1-2021 failed again: task asc/phones:") == 1
    assert "is not finite" in said
    folder = StudyFolder(out)
    assert [(cell.row, folder.finished(cell)) for cell in folder.cells()] == [("broken", False), ("ncl", True)]
    assert "broken-1-2021 failed: task asc/phones" in (out / "report.md").read_text()
    capsys.readouterr()
    assert main(["study", "--out", str(out), "--dry-run"]) == 0
    assert capsys.readouterr().out == "broken-1-2021\nncl-1-2021  finished\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "other"], "one study at a time, got 'demo' and 'other'"),
        (["dmo"], "no study and no file 'dmo'; did you mean 'demo'"),
        (["demo", "--seeds", "many"], "--seeds: expected a number of seeds, such as 5, or seeds"),
        (["demo", "--seeds", "0"], "--seeds: at least 1, got 0"),
        (["demo", "training.epochz=1"], "override 'training.epochz=1': unknown key 'training.epochz'; did you mean"),
        (["demo", "--workers", "0"], "--workers: at least 1, got 0"),
        (["--out", "nothing", "--seeds", "3"], "change what a study's file says: name the file too"),
        (["--out", "nothing"], "nothing has no study"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "nothing").exists()


def test_seeds_are_a_number_or_a_list(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text, seeds in (("2", {"2021", "2022"}), ("7,9", {"7", "9"}), ("7,", {"7"})):
        assert main(["study", "demo", "--seeds", text, "--dry-run"]) == 0
        names = capsys.readouterr().out.split()
        assert {name.rpartition("-")[2] for name in names} == seeds
    assert not list(tmp_path.iterdir())
