"""Figure of a study: the final score against the bytes that prediction needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tss.report.heatmaps import FULL_WIDTH
from tss.report.names import number, shorten, size
from tss.report.style import INK, RUN_COLOURS, Picture, new_figure, picture, run_colour
from tss.study.results import Spread

MARKERS = "osD^vP"
"""Markers of the first, second, ... set of methods that share the colours."""
MOST_TICKS = 7
LINE_HEIGHT = 0.17
"""Distance of two labels, in inches."""
CAPTION = (
    "Mean score at the end and its standard deviation over orders and seeds, against all bytes that prediction needs: "
    "gates or weights and heads of all tasks, and weights that they share. Labels are in the order of the scores; a "
    "line leads to each method's point. Upper left is better."
)


@dataclass(frozen=True)
class Point:
    """A method's name, its index among all methods, the bytes it keeps for prediction, and its final score."""

    name: str
    index: int
    kept: float
    score: Spread


def bytes_picture(points: Sequence[Point]) -> Picture | None:
    """Plot the final score against all bytes kept at the end; None without a point."""
    if not points:
        return None
    tall = max(3.8, 1 + LINE_HEIGHT * len(points))
    figure = new_figure(FULL_WIDTH, tall)
    axes = figure.add_subplot()
    for point in points:
        axes.errorbar(
            [point.kept],
            [point.score.mean],
            yerr=[point.score.deviation or 0.0],
            fmt=MARKERS[point.index // len(RUN_COLOURS) % len(MARKERS)],
            color=run_colour(point.index),
            capsize=3,
            markersize=6,
        )
    axes.set_xscale("log", base=2)
    low, high, ticks = binary_axis([point.kept for point in points])
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [size(tick).replace(".0 ", " ") for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("kept to answer all tasks")
    axes.set_ylabel("score at the end")
    axes.margins(y=0.12)
    bottom, top = axes.get_ylim()
    ordered = sorted(points, key=lambda point: point.score.mean)
    places = spaced([point.score.mean for point in ordered], LINE_HEIGHT * (top - bottom) / (tall - 0.7))
    for point, place in zip(ordered, places, strict=True):
        axes.annotate(
            f"{shorten(point.name, 30)}  {number(point.score.mean, 1)}",
            (point.kept, point.score.mean),
            (1.02, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=INK,
            arrowprops={"arrowstyle": "-", "color": run_colour(point.index), "linewidth": 0.7, "shrinkB": 4},
            annotation_clip=False,
        )
    return picture(figure, "bytes", CAPTION)


def binary_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return limits of a logarithmic axis around positive values, and at most `MOST_TICKS` powers of two as its ticks.

    The limits leave room on both sides, and contain two powers of two at least.
    """
    low, high = math.floor(math.log2(min(values)) - 0.2), math.ceil(math.log2(max(values)) + 0.2)
    step = -(-(high - low + 1) // MOST_TICKS)
    return 2.0**low, 2.0**high, [2.0**power for power in range(low, high + 1, step)]


def spaced(values: Sequence[float], gap: float) -> list[float]:
    """Return ascending values moved apart until neighbours are at least `gap` apart, crowds around their middle."""
    up, down = list(values), list(values)
    for i in range(1, len(up)):
        up[i] = max(up[i], up[i - 1] + gap)
    for i in reversed(range(len(down) - 1)):
        down[i] = min(down[i], down[i + 1] - gap)
    return [(a + b) / 2 for a, b in zip(up, down, strict=True)]
