"""All operations at a glance: how many times our time each other variant needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.measure.report import digits
from bench.reading.files import Results, conditions
from bench.reading.style import FAILED, INK, MUTED, WIDTH, Look, new_figure
from bench.reading.summaries import Line, Summary, summarise

BAR, HEAD, GAP = 0.155, 0.19, 0.12  # inches: a bar, an operation's name above its bars, and what lies below them
ONE_COLUMN = 16  # bars up to which one column has room
SPAN = 0.25, 4.0  # ratios that have a place on the axis
TICKS, FINE = (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4), (0.8, 0.9, 1.2)


def overview(results: Results, known: dict[str, Look], groups: Sequence[str] = ()) -> Any:
    """A bar from 1 for every variant of every operation, with the range of its cases; None where nothing was timed."""
    lines = [line for line in summarise(results, groups) if _bars(line) or line.failed]
    if not lines:
        return None
    titles = [line.title(lines) for line in lines]
    columns = _columns(lines)
    height = max(sum(map(_height, column)) for column in columns)
    figure = new_figure(WIDTH, height + 1.0)
    grid = figure.subplots(1, len(columns), squeeze=False)[0]
    limits = _limits(lines, len(columns))
    names = iter(titles)
    for axes, column in zip(grid, columns, strict=True):
        _axes(axes, limits, height)
        top = 0.0
        for line in column:
            top = _operation(axes, top, next(names), line, known, limits)
    figure.supxlabel(
        f"{conditions(results).line()}\nBars: geometric mean over all cases of the median ratio; lines: "
        "worst to best case; arrows: off the scale. Grey: floors, which compute less or something else.",
        x=0.01, ha="left", fontsize=7, color=MUTED,
    )  # fmt: skip
    return figure


def _bars(line: Line) -> list[Summary]:
    """Floors first, then rivals, the nearest first; other variants of ours are for the tables."""
    return sorted(
        (one for one in line.summaries if one.role != "ours"), key=lambda one: (one.role != "floor", one.ratio.median)
    )


def _height(line: Line) -> float:
    return HEAD + BAR * (len(_bars(line)) + bool(line.failed)) + GAP


def _columns(lines: Sequence[Line]) -> list[Sequence[Line]]:
    """One column, or two of about the same height, in order."""
    if sum(len(_bars(line)) for line in lines) <= ONE_COLUMN or len(lines) < 2:
        return [lines]
    heights = [_height(line) for line in lines]
    cut = min(range(1, len(lines)), key=lambda at: max(sum(heights[:at]), sum(heights[at:])))
    return [lines[:cut], lines[cut:]]


def _limits(lines: Sequence[Line], columns: int) -> tuple[float, float, float]:
    """The lowest and highest ratio that has a place, and where the axis ends, after what is written beside the bars."""
    ratios = [one.ratio for line in lines for one in _bars(line)]
    low = max(SPAN[0], min([0.8, *(one.low for one in ratios)]))
    high = min(SPAN[1], max([1.25, *(one.high for one in ratios)]))
    return low, high, high * (high / low) ** (0.35 if columns == 1 else 0.8)


def _axes(axes: Any, limits: tuple[float, float, float], height: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high, end = limits
    axes.set_xscale("log")
    axes.set_xlim(low / 1.04, end)
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(1.0, color=INK, linewidth=1.0, zorder=5)
    ticks = [tick for tick in TICKS if low / 1.04 <= tick <= high * 1.04 and (high / low < 4 or tick not in FINE)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("their time / ours (log): right of 1 ours is faster")


def _operation(
    axes: Any, top: float, title: str, line: Line, known: dict[str, Look], limits: tuple[float, float, float]
) -> float:
    """An operation's name and its bars, from `top` down; returns where the next one begins."""
    room = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.text(0, top + HEAD * 0.62, title, transform=axes.get_yaxis_transform(), fontsize=8, fontweight="bold",
              va="center", bbox=room, zorder=6)  # fmt: skip
    at = top + HEAD + BAR / 2
    for one in _bars(line):
        _bar(axes, at, one, known[one.name], limits)
        at += BAR
    if line.failed:
        axes.text(0, at, f"FAILED, no time: {'; '.join(line.failed)}"[:70], transform=axes.get_yaxis_transform(),
                  fontsize=7, color=FAILED, va="center", bbox=room, zorder=6)  # fmt: skip
    return top + _height(line)


def _bar(axes: Any, at: float, one: Summary, look: Look, limits: tuple[float, float, float]) -> None:
    """From 1 to the ratio; what has no place on the axis ends in an arrow."""
    first, last, _ = limits
    median, low, high = (min(max(value, first), last) for value in one.ratio)
    axes.barh(at, median - 1, BAR * 0.74, left=1, color=look.colour, zorder=2)
    if one.cases > 1 and low < high:
        for colour, width in (("white", 2.6), (INK, 1.1)):  # a rim, to be seen on bars of any colour
            axes.plot((low, high), (at, at), "-", color=colour, linewidth=width, zorder=3)
    for end, marker, beyond in ((first, "<", one.ratio.low < first), (last, ">", one.ratio.high > last)):
        if beyond:
            axes.plot(end, at, marker, color=INK, markersize=4, zorder=4)
    text = f"{digits(one.ratio.median)}  {one.name}"
    place = max(high, median, 1.0), at
    axes.annotate(text, place, (6, 0), textcoords="offset points", fontsize=7, va="center", color=INK, zorder=6)
