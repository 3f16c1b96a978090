"""Progress display of a run: a bar with the time left in a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn

from tss.io import nowhere


class TimeLeft:
    """Estimate of the remaining time of a run, from what its steps and evaluations took so far."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._cells_done = 0
        self._joint = False
        self._step_seconds = self._cell_seconds = 0.0
        self._steps_timed = self._cells = 0

    def see(self, event: dict[str, Any]) -> None:
        """Update the estimate with one event."""
        name = event["event"]
        if name in ("run_begin", "resumed"):
            self.tasks, self.steps = event["tasks"], event["steps"]
            self._done, self._cells_done = dict(event.get("done", {})), event.get("cells", 0)
            self._joint = event.get("joint", False)
        elif name == "step":
            task = event["task"]
            self._done[task] = self._done.get(task, 0) + 1
            self._step_seconds += event["seconds"]
            self._steps_timed += 1
        elif name == "task_end":
            self._done[event["task"]] = self.steps.get(event["task"], 0)  # the task may have stopped early
        elif name == "evaluated":
            self._cell_seconds += event["seconds"]
            self._cells += 1
            self._cells_done += 1

    def fraction(self, task: str) -> float:
        """Return the fraction of a task's steps that are done, 0 to 1."""
        return min(1.0, self._done.get(task, 0) / max(1, self.steps.get(task, 1)))

    def share(self) -> float:
        """Return the fraction of all steps that are done, 0 to 1."""
        done = sum(min(self._done.get(task, 0), total) for task, total in self.steps.items())
        return done / max(1, sum(self.steps.values()))

    def seconds(self) -> float | None:
        """Return the seconds left (without early stops), None before the first step."""
        if not self._steps_timed:
            return None
        steps_left = sum(max(0, total - self._done.get(task, 0)) for task, total in self.steps.items())
        rows = 2 if self._joint else len(self.tasks) + 1  # half of the cells count: a triangle, or one row
        cells_left = len(self.tasks) * rows // 2 - self._cells_done
        per_cell = self._cell_seconds / self._cells if self._cells else 0.0
        return steps_left * self._step_seconds / self._steps_timed + max(0, cells_left) * per_cell


class Console:
    """Event listener that writes to a terminal (a bar and lines, by rich) or a pipe (plain lines).

    Args:
        stream: where to write; None is standard error.
        every: minimum seconds between two lines about steps in a pipe.
    """

    def __init__(self, stream: TextIO | None = None, *, every: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._every, self._last = every, 0.0
        self._left = TimeLeft()
        self._bar: Progress | None = None
        if self._stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}"))
            self._bar = Progress(*columns, console=RichConsole(file=self._stream), transient=True)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event; training goes on if nobody reads any more."""
        try:
            self._show(event)
        except OSError:  # a closed pipe or terminal
            self._stream, self._bar = nowhere(), None

    def _show(self, event: dict[str, Any]) -> None:
        self._left.see(event)
        if event["event"] == "step":
            self._show_step(event)
        elif (line := describe(event)) is not None:
            self._line(line)
        if event["event"] == "run_end":
            self.close()

    def close(self) -> None:
        """Remove the bar; can be called right after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_step(self, event: dict[str, Any]) -> None:
        task, rest = event["task"], format_seconds(self._left.seconds())
        fraction = self._left.fraction(task)
        if self._bar is None:
            if time.monotonic() - self._last >= self._every:
                self._last = time.monotonic()
                self._line(f"  {task}: {fraction:4.0%} of the steps, loss {event['loss']:.4f}, {rest} left")
            return
        if not self._bar.task_ids:
            self._bar.start()
            self._bar.add_task(task, total=1.0, rest="")
        text = f"{fraction:4.0%}  loss {event['loss']:.3f}  {rest} left"
        self._bar.update(self._bar.task_ids[0], description=task, completed=fraction, rest=text)

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)


def describe(event: dict[str, Any]) -> str | None:
    """Return a line for an event that is shown as one, else None."""
    match event["event"]:
        case "run_begin":
            tasks = event["tasks"]
            where = f"{event['backbone']}, {event['precision']} on {event['device']}"
            return f"{len(tasks)} tasks by {event['method']} on {where}: {', '.join(tasks)}"
        case "resumed":
            return f"resuming: {event['learned']} of {len(event['tasks'])} tasks are learned"
        case "task_begin":
            sizes = f"{event['train']} training, {event['validation']} validation, {event['test']} test examples"
            return f"[{event['index'] + 1}] {event['task']} ({event['kind']}): {sizes}, {event['steps']} steps"
        case "epoch":
            validation = f"validation {event['metric']} {event['validation']:.4g}"
            return f"  epoch {event['epoch'] + 1}: loss {event['loss']:.4f}, {validation}{_flipped(event['flipped'])}"
        case "task_end":
            return f"  learned in {format_seconds(event['seconds'])}, {event['bytes']['total']:,} bytes kept"
        case "warning":
            return f"  warning: {event['text']}"
        case "verified":
            return f"  verified: {event['tasks']} sealed tasks unchanged, bit for bit"
        case "evaluated":
            again = "" if event.get("measured", True) else ", as before"
            return f"  {event['task']}: {event['main']} {event['value']:.2f}{again}"
        case "settings":
            return f"  learned with other settings than the run began with: {', '.join(event['tasks'])}"
        case "environment":
            return f"  resumed elsewhere ({', '.join(event['changed'])} differ): probes renewed, last bits may differ"
    return None


def format_seconds(seconds: float | None) -> str:
    """Format seconds, for example as "45 s", "3 min 20 s" or "2 h 05 min"; "?" for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _flipped(flipped: dict[str, float]) -> str:
    return f", {sum(flipped.values()) / len(flipped):.2%} of the gates flipped" if flipped else ""
