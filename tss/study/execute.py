"""Runs what of a study is not finished, retries what failed, and tells how it goes."""

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
    """What happened to a cell: "started", "finished", "failed" (to be tried again), "given up"; None: time passed."""

    what: str | None
    cell: Cell | None
    progress: Progress
    error: str = ""
    seconds: float = 0.0


@dataclass
class Progress:
    """How far a study is.

    Attributes:
        cells: all, by name; `finished` is how many are; `failed` name -> error of those that were given up.
        capacity: cells at a time.
        waiting: cells that have not begun.
        shares: name of a running cell -> share of its steps that are done, where it told of it.
        lefts: the same -> seconds left by its own estimate.
        times: row -> seconds of each of its cells that was begun and finished here.
        started: name of a running cell -> when, of the monotonic clock.
        resumed: running cells that were not begun here, whose time says nothing.
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
        """Take in what a running cell tells of itself."""
        self.shares[cell.name] = told["done"]
        if told["left"] is not None:
            self.lefts[cell.name] = told["left"]

    def unfinished(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.started or self.waiting)

    def seconds_left(self) -> float | None:
        """Seconds until the study ends, by the cells that have finished and what running ones tell; None: unknown."""
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
    """Run every cell that is not finished; a failed one once more, after all others.

    Args:
        folder: the study's, its plan fixed.
        cells: the plan.
        engine: where they run.
        listener: called with every event, and about once a second.

    Raises:
        KeyboardInterrupt: after all running cells were stopped, each where it can go on.
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
                if error == STOPPED:  # by a signal that was not ours
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
