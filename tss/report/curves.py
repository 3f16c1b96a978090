"""Line plots: validation by epoch, training loss by step, importance by task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tss.report.heatmaps import FULL_WIDTH
from tss.report.names import shorten
from tss.report.run import Run
from tss.report.style import MUTED, Picture, new_figure, picture, run_colour, run_legend, run_style

POINTS = 240
"""Maximum points of a loss curve per task; long runs record hundreds of thousands, which no figure can show."""
MOST_POINTS = 20_000
"""Maximum points of all loss curves together."""
MOST_LABELS = 60
"""Maximum number of task names that fit on an axis."""
MOST_PANELS = 40
"""Maximum number of panels of learning curves on a page."""
Line = list[tuple[float, float]]


def learning_picture(runs: Sequence[Run], name: str) -> Picture | None:
    """Draw validation by epoch, one small panel per task, one line per run; None without any epoch."""
    panels = {task: [run for run in runs if _epochs(run, task)] for task in all_tasks(runs)}
    panels = {task: having for task, having in panels.items() if having}
    if not panels:
        return None
    left_out = len(panels) - MOST_PANELS
    panels = dict(list(panels.items())[:MOST_PANELS])
    columns = min(len(panels), 4 if len(panels) <= 12 else 6)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(FULL_WIDTH if columns > 2 else 3.6 * columns, 0.6 + 1.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, panels, strict=False):
        metric = _draw_panel(axes, runs, task)
        axes.set_title(shorten(task, 24 if columns < 6 else 19), fontsize=8 if columns < 6 else 7)
        axes.set_title(metric, loc="right", fontsize=6.5, fontweight="normal", color=MUTED)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=4, min_n_ticks=1)
        axes.set_xlim(0.5, 0.5 + max(len(_epochs(run, task)) for run in panels[task]))
        axes.locator_params(axis="y", nbins=4)
        axes.tick_params(labelsize=7)
    figure.supxlabel("epoch", fontsize=8.5)
    run_legend(figure, [run.label for run in runs], lines=True)
    caption = (
        "Validation after each epoch, in the measure named at the right (for a loss, lower is better). "
        "The dot is the state that was kept. Every panel has its own scale."
    )
    if left_out > 0:
        caption += f" The first {MOST_PANELS} tasks; {left_out} more are in the events of the run."
    return picture(figure, name, caption)


def _draw_panel(axes: Any, runs: Sequence[Run], task: str) -> str:
    """Draw the lines of one task; return the name of the validation metric."""
    metric = ""
    for index, run in enumerate(runs):
        events = _epochs(run, task)
        if not events:
            continue
        metric = str(events[-1].get("metric") or "")
        line = [(int(e["epoch"]) + 1, float(e["validation"])) for e in events]
        axes.plot(*zip(*line, strict=True), color=run_colour(index), linestyle=run_style(index))
        kept = (min if metric == "loss" else max)(line, key=lambda point: point[1])
        axes.plot(*kept, marker="o", markersize=4, color=run_colour(index))
    return metric


def loss_picture(run: Run, name: str) -> Picture | None:
    """Draw the training loss over the steps of the whole sequence, tasks side by side; None without step events."""
    most = max(1, min(POINTS, MOST_POINTS // max(1, len(run.tasks))))
    curves = {task: _loss_curve(run, task, most) for task in run.tasks}
    curves = {task: curve for task, curve in curves.items() if curve}
    if not curves:
        return None
    figure = new_figure(FULL_WIDTH, 2.4)
    axes = figure.add_subplot()
    start, middles, ends = 0.0, [], []
    lines: tuple[Line, Line] = ([], [])  # two lines with gaps, instead of a line for each of thousands of tasks
    for index, (task, curve) in enumerate(curves.items()):
        lines[index % 2].extend((start + step, loss) for step, loss in curve)
        lines[index % 2].append((math.nan, math.nan))
        end = start + max(curve[-1][0], steps_per_epoch(run, task) * len(run.of("epoch", task)))
        middles.append((start + end) / 2)
        start = end
        ends.append(start)
    for line, colour in zip(lines, (run_colour(0), run_colour(4)), strict=True):
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=1)
    axes.vlines(ends, 0, 1, color=MUTED, linewidth=0.4, transform=axes.get_xaxis_transform())
    crowded = len(curves) > 12
    every = math.ceil(len(curves) / MOST_LABELS)
    axes.set_xticks(middles[::every], [shorten(t, 20) for t in curves][::every], rotation=90 if crowded else 20)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("center" if crowded else "right")
    axes.tick_params(axis="x", labelsize=6.5 if crowded else 8)
    axes.set_xlim(0, max(start, 1))
    axes.set_ylabel("training loss")
    axes.grid(axis="x", visible=False)
    caption = (
        f"Training loss at the recorded steps, tasks in training order; the width of a band is its task's number of "
        f"optimizer steps, {start:,.0f} in total."
    )
    return picture(figure, name, caption)


def capacity_picture(run: Run, name: str) -> Picture | None:
    """Draw the mean importance after each task, over the layers that any task used so far; None if not recorded."""
    ends = [end for end in run.by_task("task_end").values() if end.get("importance_mean")]
    if not ends:
        return None
    shares, ran, layers = [], set(), set()
    for end in ends:
        layers |= set(end["importance_mean"])
        ran |= set(end["importance_mean"]) - set(end.get("unused") or ())
        values = [value for layer, value in end["importance_mean"].items() if layer in ran]
        shares.append(100 * sum(values) / max(1, len(values)))
    figure = new_figure(min(FULL_WIDTH, 3.6 + 0.3 * len(shares)), 2.4)
    axes = figure.add_subplot()
    axes.plot(range(1, len(shares) + 1), shares, marker="o", markersize=3, color=run_colour(0))
    axes.set_ylim(0, 100)
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("mean importance, %")
    axes.locator_params(axis="x", integer=True)
    caption = (
        "Mean of the accumulated importance I over all gates: how strongly the soft mask restrains the next task. "
        "At 100 % nothing could change."
    )
    if idle := len(layers - ran):
        caption += f" {idle} of {len(layers)} matrices, which no task ran, are left out."
    return picture(figure, name, caption)


def all_tasks(runs: Sequence[Run]) -> list[str]:
    """Return the tasks of all runs, in order of first appearance."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks))


def _epochs(run: Run, task: str) -> list[dict[str, Any]]:
    return [e for e in run.of("epoch", task) if e.get("validation") is not None]


def steps_per_epoch(run: Run, task: str) -> int:
    """Return the optimizer steps per epoch of a task: as recorded at its start, else the most recorded in an epoch."""
    begin = next(iter(run.of("task_begin", task)), {})
    if begin.get("steps") and begin.get("epochs"):
        return int(begin["steps"]) // int(begin["epochs"])
    return max((int(e["step"]) for e in run.of("step", task)), default=-1) + 1


def _loss_curve(run: Run, task: str, most: int) -> Line:
    """Return (steps since the task began, loss), averaged to at most `most` points; events count steps in an epoch."""
    events = [e for e in run.of("step", task) if e.get("loss") is not None]
    per_epoch = steps_per_epoch(run, task)
    curve = [(int(e["epoch"]) * per_epoch + int(e["step"]) + 1, float(e["loss"])) for e in events]
    size = math.ceil(len(curve) / most) or 1
    chunks = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [
        (sum(step for step, _ in chunk) / len(chunk), sum(loss for _, loss in chunk) / len(chunk)) for chunk in chunks
    ]
