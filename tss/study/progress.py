"""What a study looks like while it goes on: a line for each thing that happens, and how much is left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console as RichConsole
from rich.status import Status

from tss.run.progress import format_seconds
from tss.study.execute import Event, Progress


class Console:
    """A listener of a study's events that writes to a terminal (a line that changes) or a pipe (a line a minute).

    Args:
        stream: where to write; None is standard error.
        every: seconds between two lines of progress in a pipe.
    """

    def __init__(self, stream: TextIO | None = None, *, every: float = 60.0) -> None:
        self._stream = stream or sys.stderr
        self._every, self._last = every, time.monotonic()
        self._status: Status | None = None
        if self._stream.isatty():
            self._status = RichConsole(file=self._stream).status("starting")
            self._status.start()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if (line := describe(event)) is not None:
            self._line(line)
        now = time.monotonic()
        if self._status is not None:
            self._status.update(overview(event.progress))
        elif now - self._last >= self._every:
            self._line(overview(event.progress))
            self._last = now

    def close(self) -> None:
        """Take the changing line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _line(self, text: str) -> None:
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)


def describe(event: Event) -> str | None:
    """One line for what happened to a cell."""
    if event.cell is None:
        return None
    name, count = event.cell.name, f"[{event.progress.finished}/{len(event.progress.cells)}]"
    match event.what:
        case "started":
            again = "goes on" if name in event.progress.resumed else "begins"
            return f"{name} {again}"
        case "finished":
            left = format_seconds(event.progress.seconds_left()) if event.progress.unfinished() else "0 s"
            return f"{count} {name} finished in {format_seconds(event.seconds)}; about {left} left"
        case "failed":
            return f"{name} failed and will be tried once more: {event.error}"
        case _:
            return f"{name} failed again: {event.error}"


def overview(progress: Progress) -> str:
    """How many cells are finished, how far the running ones are, and the time left."""
    running = [f"{name} {progress.shares.get(name, 0.0):.0%}" for name in progress.started]
    failed = f", {len(progress.failed)} failed" if progress.failed else ""
    left = format_seconds(progress.seconds_left())
    return (
        f"{progress.finished} of {len(progress.cells)} runs finished{failed}; {', '.join(running)}; about {left} left"
    )
