"""Run the unfinished cells of a study, retry failed ones, and report progress."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tss.study.cell import STOPPED
from tss.study.engines import Engine
from tss.study.folder import StudyFolder
from tss.study.plan import Cell

ATTEMPTS = 2
WAIT = 1.0


@dataclass(frozen=True)
class Event:
    """Event of a cell: "started", "finished", "failed" (will be retried) or "given up"; None for a periodic event."""

    what: str | None
    cell: Cell | None
    progress: Progress
    error: str = ""
    seconds: float = 0.0


@dataclass
class Progress:
    """Progress of a study.

    Attributes:
        cells: name -> cell, all cells; finished: number of finished ones; failed: name -> error of given-up ones.
        capacity: number of cells at a time.
        waiting: cells that wait to be started or retried.
        shares: name of a running cell -> fraction of its steps that are done, once reported.
        lefts: name of a running cell -> seconds left by its own estimate, once reported.
        times: row -> seconds of each of its cells that was both started and finished here.
        started: name of a running cell -> time of its start on the monotonic clock.
        resumed: cells that were resumed, whose duration is not that of a whole run.
    """

    cells: dict[str, Cell]
    finished: int
    capacity: int
    waiting: list[Cell] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    lefts: dict[str, float] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    resumed: set[str] = field(default_factory=set)

    def see(self, cell: Cell, told: Mapping[str, Any]) -> None:
        """Update the progress from a message of a running cell."""
        self.shares[cell.name] = told["done"]
        if told["left"] is not None:
            self.lefts[cell.name] = told["left"]

    def unfinished(self) -> bool:
        """Return whether any cell is running or waiting."""
        return bool(self.started or self.waiting)

    def seconds_left(self) -> float | None:
        """Estimate the seconds until the study ends from finished cells and reports of running ones, or None."""
        whole = {row: sum(times) / len(times) for row, times in self.times.items()}
        rest = 0.0
        now = time.monotonic()
        for name, begun in self.started.items():
            row = self.cells[name].row
            if name in self.lefts:
                rest += self.lefts[name]
                whole.setdefault(row, now - begun + self.lefts[name])
            elif row in whole and name not in self.resumed:
                rest += max(0.0, whole[row] - (now - begun))
        if not whole:
            return None
        mean = sum(whole.values()) / len(whole)
        rest += sum(whole.get(cell.row, mean) for cell in self.waiting)
        longest = max([self.lefts.get(name, 0.0) for name in self.started], default=0.0)
        at_once = max(1, min(self.capacity, len(self.started) + len(self.waiting)))
        return max(longest, rest / at_once)


def run_study(
    folder: StudyFolder,
    cells: Sequence[Cell],
    engine: Engine,
    listener: Callable[[Event], None] | None = None,
) -> Progress:
    """Run every cell that is not finished; retry a failed one once, after all others.

    Args:
        folder: folder of the study, with a fixed plan.
        cells: the cells of the plan.
        engine: engine that runs the cells.
        listener: called with every event, and about once a second.

    Raises:
        KeyboardInterrupt: raised after all running cells were stopped so that each can resume.
    """

    todo = deque(cell for cell in cells if not folder.finished(cell))
    progress = Progress({cell.name: cell for cell in cells}, len(cells) - len(todo), engine.capacity, list(todo))

    def tell(what: str | None, cell: Cell | None, error: str = "", seconds: float = 0.0) -> None:
        if listener is not None:
            listener(Event(what, cell, progress, error, seconds))

    attempts: dict[str, int] = {}
    try:
        while todo or progress.started:
            while todo and len(progress.started) < engine.capacity:
                cell = todo.popleft()
                if folder.run(cell).is_dir():
                    progress.resumed.add(cell.name)
                attempts[cell.name] = attempts.get(cell.name, 0) + 1
                progress.started[cell.name] = time.monotonic()
                progress.waiting = list(todo)
                engine.start(cell)
                tell("started", cell)
            for cell, told in engine.told():
                progress.see(cell, told)
            for cell, error in engine.ended(WAIT):
                if error == STOPPED:  # stopped by a signal that this process did not cause
                    error = "its process was interrupted"
                seconds = time.monotonic() - progress.started.pop(cell.name)
                progress.shares.pop(cell.name, None)
                progress.lefts.pop(cell.name, None)
                if error is None and not folder.finished(cell):
                    error = "its process ended without an error, but the run is not finished"
                folder.note(cell, error)
                if error is None:
                    progress.finished += 1
                    if cell.name not in progress.resumed:
                        progress.times.setdefault(cell.row, []).append(seconds)
                    tell("finished", cell, seconds=seconds)
                elif attempts[cell.name] < ATTEMPTS:
                    todo.append(cell)
                    tell("failed", cell, error)
                else:
                    progress.failed[cell.name] = error
                    tell("given up", cell, error)
            progress.waiting = list(todo)
            tell(None, None)
    finally:
        engine.stop()
    return progress
