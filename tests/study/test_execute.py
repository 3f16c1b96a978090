"""What runs when, what is tried again, and what is told: with cells that run nowhere."""

from __future__ import annotations

import pytest

from tests.study.conftest import pretend
from tss.run.progress import format_seconds
from tss.study.cell import STOPPED
from tss.study.execute import Progress, run_study
from tss.study.folder import StudyFolder
from tss.study.progress import describe, overview

MATRIX = [[1.0, None, None], [1.0, 2.0, None], [1.0, 2.0, 3.0]]


class Engine:
    """Cells that end in the order in which they were started, as `results` says: errors by name, or finished."""

    def __init__(self, folder: StudyFolder, capacity: int, results: dict[str, list[str | None]]) -> None:
        self.folder, self.capacity, self.results = folder, capacity, results
        self.started, self.running, self.most, self.stopped = [], [], 0, False

    def start(self, cell) -> None:
        self.started.append(cell.name)
        self.running.append(cell)
        self.most = max(self.most, len(self.running))

    def ended(self, seconds):
        cell = self.running.pop(0)
        error = self.results.get(cell.name, [None]).pop(0)
        if isinstance(error, BaseException):
            raise error
        if error is None:
            pretend(self.folder, cell, MATRIX)
        return [(cell, error)]

    def told(self):
        return [(cell, {"done": 0.5, "left": 60.0}) for cell in self.running]

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(tmp_path / "out")


def test_a_failed_cell_is_tried_once_more_after_the_others_and_stops_none(folder, cells):
    made = cells(seeds=2)
    results = {"tss-1-2021": ["first"], "ncl-1-2021": ["no memory", "no memory"], "tss-1-2022": [STOPPED, None]}
    results["tss-1-2021"].append(None)
    engine, said = Engine(folder, 2, results), []
    progress = run_study(folder, made, engine, lambda event: said.append(describe(event)))
    names = [cell.name for cell in made]
    assert engine.started == [*names, "tss-1-2021", "ncl-1-2021", "tss-1-2022"]
    assert (engine.most, engine.stopped) == (2, True)
    assert progress.failed == {"ncl-1-2021": "no memory"}
    assert (progress.finished, progress.unfinished()) == (3, False)
    assert [folder.finished(cell) for cell in made] == [True, False, True, True]
    assert [folder.failure(cell) for cell in made] == [None, "no memory", None, None]
    lines = [line for line in said if line]
    assert "ncl-1-2021 failed and will be tried once more: no memory" in lines
    assert "ncl-1-2021 failed again: no memory" in lines
    assert sum("finished in" in line for line in lines) == 3
    # a second call skips what is finished, and tries what failed anew
    again = Engine(folder, 2, {})
    assert run_study(folder, made, again).failed == {}
    assert again.started == ["ncl-1-2021"]
    assert folder.failure(made[1]) is None


def test_ctrl_c_stops_the_engine_and_comes_through(folder, cells):
    engine = Engine(folder, 1, {"ncl-1-2021": [KeyboardInterrupt()]})
    with pytest.raises(KeyboardInterrupt):
        run_study(folder, cells(seeds=1), engine)
    assert engine.stopped


def test_an_end_without_a_finished_run_is_no_success(folder, cells, monkeypatch):
    monkeypatch.setattr("tests.study.test_execute.pretend", lambda *args: None)
    (made,) = cells(methods=["tss"])
    failed = run_study(folder, [made], Engine(folder, 1, {"tss-1-2021": [None, None]})).failed
    assert failed == {"tss-1-2021": "its process ended without an error, but the run is not finished"}


def test_the_time_left_is_that_of_what_waits_by_rows_and_what_running_cells_tell(cells):
    made = cells(seeds=4)
    progress = Progress({cell.name: cell for cell in made}, 0, 2, made)
    assert progress.seconds_left() is None
    progress.times = {"tss": [10.0, 30.0], "ncl": [50.0]}
    assert progress.seconds_left() == pytest.approx((4 * 20 + 4 * 50) / 2)
    progress.waiting = [cell for cell in made if cell.row == "ncl"][:1]
    assert progress.seconds_left() == pytest.approx(50.0)  # one at a time is all that is left
    progress.started = {made[0].name: 0.0}
    progress.see(made[0], {"done": 0.25, "left": 90.0})
    assert progress.seconds_left() == pytest.approx(90.0)  # the longest of what runs at once
    text = overview(progress)
    assert text == f"0 of 8 runs finished; {made[0].name} 25%; about {format_seconds(90)} left"
