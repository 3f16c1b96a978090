"""Figures of lines and bars: learning curves, forgetting, learned against final scores, capacity, bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tss.report.heatmaps import FULL_WIDTH
from tss.report.names import shorten
from tss.report.reading import Run
from tss.report.style import MUTED, Picture, new_figure, picture, run_colour, run_style


def learning_picture(runs: Sequence[Run], name: str) -> Picture | None:
    """Validation score by epoch, one small panel per task, one line per run; None without any epoch."""
    curves = {t: [_curve(run, t) for run in runs] for t in _all_tasks(runs)}
    curves = {t: lines for t, lines in curves.items() if any(lines)}
    if not curves:
        return None
    columns = min(len(curves), 4 if len(curves) <= 12 else 6)
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(FULL_WIDTH if columns > 2 else 3.6 * columns, 0.5 + 1.5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(panels.flat):
        axes.set_visible(place < len(curves))
    for axes, (task, lines) in zip(panels.flat, curves.items(), strict=False):
        for index, line in enumerate(lines):
            if line:
                axes.plot(
                    *zip(*line, strict=True),
                    color=run_colour(index),
                    linestyle=run_style(index),
                    label=runs[index].label,
                )
                best = max(line, key=lambda point: point[1])
                axes.plot(*best, marker="o", markersize=3.5, color=run_colour(index))
        axes.set_title(shorten(task, 24 if columns < 6 else 20), fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)  # type: ignore[attr-defined]
        axes.locator_params(axis="y", nbins=4)
        axes.tick_params(labelsize=7)
    figure.supxlabel("epoch", fontsize=8.5)
    figure.supylabel("validation score", fontsize=8.5)
    _legend(figure, runs)
    caption = "Validation score (main metric, 0 to 100) after each epoch. The dot is the state that was kept. Panels have their own scales."
    return picture(figure, name, caption)


def loss_picture(run: Run, name: str) -> Picture | None:
    """Training loss over all steps of the sequence, tasks side by side; None without step events."""
    pieces = {t: [e for e in run.of("step") if e.get("task") == t and e.get("loss") is not None] for t in run.tasks}
    pieces = {t: events for t, events in pieces.items() if events}
    if not pieces:
        return None
    figure = new_figure(FULL_WIDTH, 2.4)
    axes = figure.add_subplot()
    start, edges = 0.0, []
    for index, events in enumerate(pieces.values()):
        steps = [start + float(e["step"]) for e in events]
        axes.plot(
            steps,
            [float(e["loss"]) for e in events],
            color=run_colour(0) if index % 2 == 0 else run_colour(4),
            linewidth=1,
        )
        edges.append((start, steps[-1]))
        start = steps[-1]
    for begin, _ in edges[1:]:
        axes.axvline(begin, color=MUTED, linewidth=0.5)
    small = len(pieces) > 12
    axes.set_xticks(
        [(a + b) / 2 for a, b in edges],
        [shorten(t, 18) for t in pieces],
        rotation=90 if small else 20,
        ha="center" if small else "right",
        fontsize=6.5 if small else 8,
    )
    axes.set_ylabel("training loss")
    axes.grid(axis="x", visible=False)
    return picture(
        figure,
        name,
        "Training loss at the recorded steps, tasks in their order; the width of a band is its number of steps.",
    )


def forgetting_picture(runs: Sequence[Run], name: str) -> Picture | None:
    """How far each task fell between its own row and the last row, one bar per run; None with fewer than two rows."""
    tasks = [t for t in _all_tasks(runs) if any(drop(run, t) is not None for run in runs)]
    if not tasks:
        return None
    figure = new_figure(FULL_WIDTH, 2.9 if len(tasks) <= 12 else 3.5)
    axes = figure.add_subplot()
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        heights = [drop(run, t) or 0.0 for t in tasks]
        places = [p - 0.4 + width * (index + 0.5) for p in range(len(tasks))]
        axes.bar(places, heights, width * 0.92, color=run_colour(index), label=run.label)
        for place, task, height in zip(places, tasks, heights, strict=True):
            if drop(run, task) == 0 and len(tasks) <= 24:
                axes.plot(place, 0, marker="_", color=run_colour(index), markersize=4)
            if len(tasks) * len(runs) <= 30 and drop(run, task) is not None:
                text = f"{height:.1f}" if height else "0"
                axes.annotate(
                    text,
                    (place, height),
                    xytext=(0, 2 if height >= 0 else -9),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                )
    axes.axhline(0, color=MUTED, linewidth=0.8)
    crowded = len(tasks) > 9
    axes.set_xticks(
        range(len(tasks)),
        [shorten(t, 22) for t in tasks],
        rotation=90 if crowded else 15,
        ha="center" if crowded else "right",
        fontsize=7 if crowded else 8,
    )
    axes.set_ylabel("points lost")
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    _legend(figure, runs)
    caption = (
        "Score just after learning a task minus its score after the last one, in points of its main metric; above zero is forgotten. "
        "The last task cannot be forgotten and is left out."
    )
    return picture(figure, name, caption)


def drop(run: Run, task: str) -> float | None:
    """a[j][j] - a[last][j] for a task learned before the last measured row, else None."""
    if task not in run.tasks or run.learned < 2:
        return None
    j, last = run.tasks.index(task), run.learned - 1
    if j >= last:
        return None
    own, final = run.matrix[j][j], run.matrix[last][j]
    return None if own is None or final is None else own - final


def capacity_picture(run: Run, name: str) -> Picture | None:
    """Mean importance over all layers after each task; None where it was not recorded."""
    means = {t: e["importance_mean"] for t, e in run.by_task("task_end").items() if e.get("importance_mean")}
    if not means:
        return None
    shares = [100 * sum(layers.values()) / len(layers) for layers in means.values()]
    figure = new_figure(min(FULL_WIDTH, 3.5 + 0.35 * len(means)), 2.4)
    axes = figure.add_subplot()
    axes.plot(range(1, len(shares) + 1), shares, marker="o", markersize=3, color=run_colour(0))
    axes.set_ylim(0, 100)
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("mean importance, %")
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]
    caption = "Mean of the accumulated importance I over all gates. At 100 % the soft mask would leave nothing to move for the next task."
    return picture(figure, name, caption)


def bytes_picture(run: Run, name: str) -> Picture | None:
    """Bytes kept for each task, gates and head apart; None where they were not recorded."""
    kept = {t: e["bytes"] for t, e in run.by_task("task_end").items() if e.get("bytes")}
    if not kept:
        return None
    figure = new_figure(FULL_WIDTH, 0.7 + max(0.17, 0.3 - 0.005 * len(kept)) * len(kept))
    axes = figure.add_subplot()
    gates = [b.get("gates", 0) / 1024 for b in kept.values()]
    heads = [b.get("head", 0) / 1024 for b in kept.values()]
    axes.barh(range(len(kept)), gates, height=0.7, color=run_colour(0), label="gates, 1 bit each")
    axes.barh(range(len(kept)), heads, height=0.7, left=gates, color=run_colour(4), label="head")
    axes.set_yticks(range(len(kept)), [shorten(t, 26) for t in kept], fontsize=8 if len(kept) <= 15 else 6.5)
    axes.invert_yaxis()
    axes.set_xlabel("KiB kept for the task")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=2)
    return picture(
        figure, name, "What each learned task adds to the disk. Nothing else grows with the number of tasks."
    )


def _curve(run: Run, task: str) -> list[tuple[int, float]]:
    return [
        (int(e["epoch"]), float(e["validation"]))
        for e in run.of("epoch")
        if e.get("task") == task and e.get("validation") is not None
    ]


def _all_tasks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(t for run in runs for t in run.tasks))


def _legend(figure, runs: Sequence[Run]) -> None:  # noqa: ANN001
    """One legend above the panels, only where there is something to tell apart."""
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=run_colour(i), linestyle=run_style(i), linewidth=3) for i in range(len(runs))]
        figure.legend(handles, [r.label for r in runs], loc="outside upper left", ncols=min(len(runs), 5))
