"""A study on a local Ray cluster: a worker killed in the middle costs nothing but time."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.run.test_resume import contents, story
from tss.cli.main import main
from tss.errors import ConfigError
from tss.run.sequence import run_sequence
from tss.study.engines import RayTasks
from tss.study.execute import Event, run_study
from tss.study.folder import StudyFolder


def worker_of(folder: Path) -> int | None:
    """The process that has started the process of a run; None before there is one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                status = (entry / "status").read_text()
            except OSError:  # it has just ended
                continue
            if b"tss.study.cell" in words and str(folder).encode() in words:
                return int(next(line for line in status.splitlines() if line.startswith("PPid")).split()[1])
    return None


@pytest.mark.slow
def test_a_cell_whose_worker_is_killed_goes_on_and_ends_as_if_it_never_was(cells, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed (pip install 'tss[ray]')")
    # a worker finds this checkout wherever it runs
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    folder, made = StudyFolder(tmp_path / "out"), cells(methods=["ncl"], orders=2)
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        run = folder.run(made[0])
        events = run / "events.jsonl"
        if killed or not events.is_file() or events.read_text().count('"event": "step"') < 3:
            return
        if (worker := worker_of(run)) is not None and worker != os.getpid():
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    with folder.lock():
        folder.fix(made)
        engine = RayTasks(folder.path, "local", 2, 1)
        assert engine.capacity == 2
        progress = run_study(folder, made, engine, kill_once)
    assert len(killed) == 1
    assert progress.failed == {}
    for cell in made:
        whole = tmp_path / "whole" / cell.name
        run_sequence(cell.config, whole)
        assert folder.finished(cell)
        assert contents(folder.run(cell)) == contents(whole)
        assert story(folder.run(cell)) == story(whole)


def test_without_the_package_the_remedy_is_said(cells, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--ray needs the package ray: pip install 'tss\[ray\]'"):
        RayTasks(tmp_path, "local", 1, 1)
    monkeypatch.chdir(tmp_path)
    assert main(["study", "demo", "--ray", "--quiet"]) == 1
