"""Figure of all operations: each competitor's time as a multiple of ours, from the same numbers as the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from bench.report.results import Line, Results, Summary
from bench.report.tables import headlines
from tss.report.style import INK, MUTED, drawing, new_figure

WIDTH = 8.8  # inches: 845 CSS pixels, the width of a README
BAR, HEAD, GAP = 0.155, 0.19, 0.12  # inches: a bar, an operation's name above its bars, and the gap below them
SPAN = 0.25, 4.0  # range of ratios on the axis
TICKS = (0.25, 0.5, 1, 2, 4)
COLOURS = {"floor": "#8a8a8a", "rival": "#0072b2"}


def draw(results: Results, path: Path) -> None:
    """Write the figure of a file as SVG; the same file and matplotlib give the same bytes."""
    with drawing(), matplotlib.rc_context({"svg.fonttype": "path"}):  # a README's reader may not have the font
        figure = _figure(headlines(results), results)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def label(line: Line, one: Summary) -> str:
    """Return what a bar shows as text, which is also the bar's id in the SVG."""
    return f"{line.title}: {one.name} {one.text}"


def _bars(line: Line) -> list[Summary]:
    """Return floors, then rivals, each by increasing ratio; other variants of ours are only in tables."""
    shown = [one for one in line.summaries if one.role != "ours"]
    return sorted(shown, key=lambda one: (one.role != "floor", one.ratio.median))


def _height(lines: Sequence[Line]) -> float:
    return sum(HEAD + BAR * len(_bars(line)) + GAP for line in lines)


def _figure(lines: Sequence[Line], results: Results) -> Any:
    lines = [line for line in lines if _bars(line)]
    cuts = range(len(lines) + 1)
    cut = min(cuts, key=lambda at: max(_height(lines[:at]), _height(lines[at:])))
    columns = [column for column in (lines[:cut], lines[cut:]) if column]
    height = max(map(_height, columns), default=HEAD)
    figure = new_figure(WIDTH, height + 1.0)
    for axes, column in zip(figure.subplots(1, max(len(columns), 1), squeeze=False)[0], columns, strict=False):
        _axes(axes, height)
        top = 0.0
        for line in column:
            top = _operation(axes, top, line)
    figure.supxlabel(
        f"{results.conditions()}\nBars: geometric mean over all cases of the median ratio; lines: worst to best case. "
        "Grey: floors, which compute less or something else." + (" Busy machine." if results.busy() else ""),
        x=0.01, ha="left", fontsize=7, color=MUTED,
    )  # fmt: skip
    return figure


def _axes(axes: Any, height: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(SPAN[0] / 1.1, SPAN[1] * 8)  # with space for the text beside the bars
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(1.0, color=INK, linewidth=1.0, zorder=5)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("their time / ours (log): right of 1 ours is faster")


def _operation(axes: Any, top: float, line: Line) -> float:
    """Draw an operation's name and its bars, from `top` down; return where the next one begins."""
    axes.text(0, top + HEAD * 0.62, line.title, transform=axes.get_yaxis_transform(), fontsize=8, fontweight="bold",
              va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8}, zorder=6)  # fmt: skip
    for place, one in enumerate(_bars(line)):
        _bar(axes, top + HEAD + BAR * (place + 0.5), line, one)
    return top + _height([line])


def _bar(axes: Any, at: float, line: Line, one: Summary) -> None:
    """Draw a bar from 1 to the ratio, clipped to the axis."""
    median, low, high = (min(max(value, SPAN[0]), SPAN[1]) for value in one.ratio)
    (bar,) = axes.barh(at, median - 1, BAR * 0.74, left=1, color=COLOURS[one.role], zorder=2)
    bar.set_gid(label(line, one))
    if one.cases > 1 and low < high:
        axes.plot((low, high), (at, at), "-", color=INK, linewidth=1.1, zorder=3)
    axes.annotate(f"{one.text}  {one.name}", (max(high, median, 1.0), at), (6, 0), textcoords="offset points",
                  fontsize=7, va="center", color=INK, zorder=6)  # fmt: skip
