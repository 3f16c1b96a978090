"""Bar charts: points forgotten per task, bytes kept per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tss.report.curves import MOST_LABELS, all_tasks
from tss.report.heatmaps import FULL_WIDTH
from tss.report.names import number, shorten
from tss.report.run import Run
from tss.report.style import MUTED, Picture, new_figure, picture, run_colour, run_legend

LEAST_SPAN = 1.0
"""Minimum extent of the forgetting axis on each side of zero, in points, so that no forgetting looks like none."""


def forgetting_picture(runs: Sequence[Run], name: str) -> Picture | None:
    """Draw how much each task lost from its own row to the last row, one bar per run; None without such a task."""
    tasks = [t for t in all_tasks(runs) if any(drop(run, t) is not None for run in runs)][:MOST_LABELS]
    if not tasks:
        return None
    figure = new_figure(FULL_WIDTH, 2.9 if len(tasks) <= 9 else 3.6)
    axes = figure.add_subplot()
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        drops = [drop(run, task) for task in tasks]
        places = [place - 0.4 + width * (index + 0.5) for place in range(len(tasks))]
        axes.bar(places, [value or 0.0 for value in drops], width * 0.92, color=run_colour(index))
        if len(tasks) * len(runs) <= 30:
            _print_heights(axes, places, drops)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    crowded = len(tasks) > 9
    axes.set_xticks(range(len(tasks)), [shorten(t, 22) for t in tasks], rotation=90 if crowded else 15)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("center" if crowded else "right")
    axes.tick_params(axis="x", labelsize=7 if crowded else 8)
    axes.set_ylabel("points lost")
    axes.margins(y=0.15)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -LEAST_SPAN), max(high, LEAST_SPAN))
    axes.grid(axis="x", visible=False)
    run_legend(figure, [run.label for run in runs], lines=False)
    caption = (
        "Score just after learning a task minus its score after the last one, in points of its main metric; "
        "a value above zero is forgetting. The last task cannot be forgotten and is left out."
    )
    return picture(figure, name, caption)


def _print_heights(axes: Any, places: Sequence[float], heights: Sequence[float | None]) -> None:
    for place, height in zip(places, heights, strict=True):
        if height is not None:
            text = number(height, 1) if height else "0"
            offset = (0, 2 if height >= 0 else -9)
            axes.annotate(text, (place, height), offset, textcoords="offset points", ha="center", fontsize=7)


def drop(run: Run, task: str) -> float | None:
    """Return a[j][j] - a[last][j] for a task learned before the last measured row, otherwise None."""
    j, last = run.places.get(task, -1), run.learned - 1
    if j < 0 or j >= last:
        return None
    own, final = run.own(j), run.matrix[last][j]
    return None if own is None or final is None else own - final


def bytes_picture(run: Run, name: str) -> Picture | None:
    """Draw the bytes kept for each task, with the head separate from the rest; None if they were not recorded."""
    kept = {t: e["bytes"] for t, e in run.by_task("task_end").items() if e.get("bytes")}
    left_out = len(kept) - MOST_LABELS
    kept = dict(list(kept.items())[:MOST_LABELS])
    if not any(parts.get("total") for parts in kept.values()):
        return None
    figure = new_figure(FULL_WIDTH, 0.9 + max(0.17, 0.3 - 0.005 * len(kept)) * len(kept))
    axes = figure.add_subplot()
    gates = [parts.get("gates", 0) / 1024 for parts in kept.values()]
    heads = [parts.get("head", 0) / 1024 for parts in kept.values()]
    axes.barh(range(len(kept)), gates, height=0.7, color=run_colour(0))
    axes.barh(range(len(kept)), heads, height=0.7, left=gates, color=run_colour(1))
    axes.set_yticks(range(len(kept)), [shorten(t, 26) for t in kept])
    axes.tick_params(axis="y", labelsize=8 if len(kept) <= 15 else 6.5)
    axes.invert_yaxis()
    axes.set_xlabel("KiB kept for the task")
    axes.grid(axis="y", visible=False)
    if any(gates):
        run_legend(figure, [run.kept, "head"], lines=False)
    caption = f"What each learned task adds on disk{'' if any(gates) else ': its head alone'}."
    if left_out > 0:
        caption += f" The first {MOST_LABELS} tasks; {left_out} more are in the table."
    return picture(figure, name, caption)
