"""Progress display of a study: a line for each event, and the time left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console as RichConsole
from rich.status import Status

from tss.io import nowhere
from tss.run.progress import format_seconds
from tss.study.execute import Event, Progress


class Console:
    """Listener that shows a study's progress on a terminal (a status line) or in a pipe (one line per minute).

    Args:
        stream: output stream; None is standard error.
        every: seconds between two progress lines in a pipe.
    """

    def __init__(self, stream: TextIO | None = None, *, every: float = 60.0) -> None:
        self._stream = stream or sys.stderr
        self._every, self._last = every, time.monotonic()
        self._status: Status | None = None
        if self._stream.isatty():
            self._status = RichConsole(file=self._stream).status("starting")
            self._status.start()

    def __call__(self, event: Event) -> None:
        """Show one event; the study goes on if nobody reads any more."""
        try:
            self._show(event)
        except OSError:  # a closed pipe or terminal
            self._stream, self._status = nowhere(), None

    def _show(self, event: Event) -> None:
        if (line := describe(event)) is not None:
            self._line(line)
        now = time.monotonic()
        if self._status is not None:
            self._status.update(overview(event.progress))
        elif now - self._last >= self._every:
            self._line(overview(event.progress))
            self._last = now

    def close(self) -> None:
        """Remove the status line."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _line(self, text: str) -> None:
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)


def describe(event: Event) -> str | None:
    """Return one line that describes a cell's event; None for a periodic event."""
    if event.cell is None:
        return None
    name, count = event.cell.name, f"[{event.progress.finished}/{len(event.progress.cells)}]"
    match event.what:
        case "started":
            again = "continues" if name in event.progress.resumed else "started"
            return f"{name} {again}"
        case "finished":
            left = format_seconds(event.progress.seconds_left()) if event.progress.unfinished() else "0 s"
            return f"{count} {name} finished in {format_seconds(event.seconds)}; about {left} left"
        case "failed":
            return f"{name} failed and will be tried once more: {event.error}"
        case _:
            return f"{name} failed again: {event.error}"


def overview(progress: Progress) -> str:
    """Return one line with the number of finished cells, the progress of running ones, and the time left."""
    running = [f"{name} {progress.shares.get(name, 0.0):.0%}" for name in progress.started]
    failed = f", {len(progress.failed)} failed" if progress.failed else ""
    left = format_seconds(progress.seconds_left())
    return (
        f"{progress.finished} of {len(progress.cells)} runs finished{failed}; {', '.join(running)}; about {left} left"
    )
