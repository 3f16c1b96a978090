"""Figures of one result file: scaling curves, and an overview of all ratios."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure.report import Span, is_timed, main_of, ratio_of, time_of
from bench.reading.files import Record, Results, conditions, families, is_gpu
from bench.reading.overview import overview
from bench.reading.style import FAILED, INK, MUTED, WIDTH, Look, drawing, looks, new_figure, save
from bench.reading.targets import target_of

COLUMNS = 3
UNITS = ((1e6, "s"), (1e3, "ms"), (1.0, "us"), (1e-3, "ns"))
AXES = {
    "rows": "rows (batch x length)", "in": "input features", "out": "output features", "bottleneck": "bottleneck",
    "tensors": "tensors that the scores lie in", "tasks": "learned tasks",
}  # fmt: skip


class Curve(NamedTuple):
    """One size grows, the others stay: the points in order of that size."""

    operation: str
    key: str
    dtype: str
    fixed: dict[str, int]
    points: list[Record]


def curves(records: Sequence[Record]) -> list[Curve]:
    """The scaling curves among records. Where a size is met twice, the other sizes tell curves apart."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record.get("curve"):
            key = record["operation"], record["curve"], record.get("dtype", ""), record.get("threads")
            found.setdefault(key, []).append(record)
    made = []
    for (operation, key, dtype, _), points in found.items():
        sizes = [point["shape"][key] for point in points]
        split: dict[tuple[Any, ...], list[Record]] = {}
        for point in points:
            others = tuple(item for item in point["shape"].items() if item[0] != key)
            split.setdefault(others if len(set(sizes)) < len(sizes) else (), []).append(point)
        for group in split.values():
            shared = [set(point["shape"].items()) for point in group]
            common = set.intersection(*shared) if len(group) > 1 else set()
            fixed = {name: size for name, size in group[0]["shape"].items() if (name, size) in common and name != key}
            made.append(Curve(operation, key, dtype, fixed, sorted(group, key=lambda one: one["shape"][key])))
    return made


NOTHING = Span(math.nan, math.nan, math.nan)  # a gap in a line


def _values(curve: Curve, name: str, ratio: bool) -> list[Span]:
    """A variant's values at the curve's points; ours over itself is left out."""
    values = []
    for point in curve.points:
        variant = point["variants"].get(name)
        value = ratio_of(point, name) if ratio else time_of(variant) if variant and is_timed(variant) else None
        values.append(value or NOTHING)
    return [] if all(value is NOTHING for value in values) else values


def _draw_lines(axes: Any, curve: Curve, ratio: bool, known: dict[str, Look]) -> list[float]:
    """Draws every variant; returns all values, without those of gaps."""
    sizes, drawn = [point["shape"][curve.key] for point in curve.points], []
    for place, (name, look) in enumerate(known.items()):
        values = _values(curve, name, ratio)
        if not values:
            continue
        drawn += [bound for value in values if value is not NOTHING for bound in value]
        axes.fill_between(
            sizes, [one.low for one in values], [one.high for one in values], color=look.colour, alpha=0.16, linewidth=0
        )
        axes.plot(
            sizes, [one.median for one in values], look.line, color=look.colour, marker=look.marker, markersize=4.6,
            markeredgecolor="white", markeredgewidth=0.5, linewidth=look.width, zorder=5 if place == 0 else 3,
        )  # fmt: skip
    return drawn


def _draw_targets(axes: Any, curve: Curve, known: dict[str, Look], gpu: bool) -> list[float]:
    """Draws what the ratios should reach at least, and returns it."""
    drawn = []
    for name, look in known.items():
        for target, points in _targets(curve, name, gpu).items():
            sizes = [point["shape"][curve.key] for point in points]
            axes.plot(
                (sizes[0] / 1.25, sizes[-1] * 1.25), [target] * 2, ":", color=look.colour, linewidth=1.6, zorder=2
            )
            drawn.append(target)
    return drawn


def _targets(curve: Curve, name: str, gpu: bool) -> dict[float, list[Record]]:
    """What a curve's ratios to a variant should reach at least, and at which points."""
    found: dict[float, list[Record]] = {}
    for point in curve.points:
        target = target_of(point, name, gpu)
        if target is not None and ratio_of(point, name) is not None:
            found.setdefault(target.least, []).append(point)
    return found


def _size_text(size: float) -> str:
    return f"{size / 1024:g}k" if size >= 1024 and size % 1024 == 0 else f"{size:g}"


def _scale_sizes(axes: Any, curve: Curve) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    sizes = [point["shape"][curve.key] for point in curve.points]
    if min(sizes) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) / 1.35, max(sizes) * 1.35)
    else:
        axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _size_text(size)))


def time_label(us: float) -> str:
    """A tick of a time axis, with its unit."""
    size, unit = next((known for known in UNITS if us >= known[0] * 0.999), UNITS[-1])
    return f"{us / size:g} {unit}"


def _scale_values(axes: Any, values: Sequence[float], ratio: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    if not values:
        return
    low, high = min(values), max(values)
    room = (high / low) ** 0.06
    axes.set_ylim(low / room, high * room)
    if ratio:
        steps = (0.8, 0.9, 1.0, 1.2, 1.5, 2, 3, 5) if high / low < 6 else (1.0, 2.0, 5.0) if high / low < 90 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(10, subs=[10 * step if step < 1 else step for step in steps]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    else:
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if high / low < 500 else (1.0,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: time_label(value)))


def _panels(pair: Sequence[Any], curve: Curve, known: dict[str, Look], gpu: bool, place: tuple[int, int]) -> None:
    """A curve's two panels: times above, ratios below. place: its column, and of how many."""
    column, columns = place
    for axes, ratio in zip(pair, (False, True), strict=True):
        values = _draw_lines(axes, curve, ratio, known)
        if ratio:
            axes.axhline(1.0, color=INK, linewidth=1.0, zorder=2.5)
            values += [0.9, 1.12, *_draw_targets(axes, curve, known, gpu)]
        _scale_sizes(axes, curve)
        _scale_values(axes, values, ratio)
    fixed = ", ".join(f"{name} {size}" for name, size in curve.fixed.items())
    pair[0].set_title(textwrap.fill(curve.operation, 34 if columns > 1 else 60), pad=14 if fixed else 4)
    if fixed:
        pair[0].text(0, 1.02, fixed, transform=pair[0].transAxes, color=MUTED, fontsize=7.5, va="bottom")
    pair[0].tick_params(labelbottom=False)
    pair[1].set_xlabel(AXES.get(curve.key, curve.key))
    if column == 0:
        pair[0].set_ylabel("time, log scale")
        pair[1].set_ylabel("their time / ours\n(above 1: ours is faster)")


def _failures(drawn: Sequence[Curve]) -> str:
    """Which points are not there because a check failed."""
    failed = dict.fromkeys(
        f"{name} at {curve.key} {point['shape'][curve.key]}"
        for curve in drawn for point in curve.points
        for name, variant in point["variants"].items() if "failed" in variant
    )  # fmt: skip
    return "Check FAILED, no time: " + ", ".join(failed) if failed else ""


def _legend(figure: Any, shown: dict[str, Look], drawn: Sequence[Curve], gpu: bool) -> None:
    from matplotlib.lines import Line2D

    roles = {name: variant["role"] for c in drawn for p in c.points for name, variant in p["variants"].items()}
    ours = main_of(drawn[0].points[0])
    entries: list[tuple[Any, str]] = []
    for name, look in shown.items():
        line = Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, markersize=4.5,
                      linewidth=look.width)  # fmt: skip
        entries.append(
            (line, f"{name} (ours)" if name == ours else f"{name} (floor)" if roles[name] == "floor" else name)
        )
    for name, look in shown.items():
        for least in sorted({least for curve in drawn for least in _targets(curve, name, gpu)}):
            line = Line2D([], [], color=look.colour, linestyle=":", linewidth=1.6)
            entries.append((line, f"target: {name} at least {least:.3g}"))
    if not entries:
        return
    handles, names = zip(*entries, strict=True)
    room, wide = sum(len(name) + 7 for name in names), len(drawn) > 1
    ncols = len(names) if room < (125 if wide else 75) else 3 if wide else 2
    figure.legend(handles, names, loc="outside upper left", ncols=ncols,
                  columnspacing=1.4, handlelength=2.2)  # fmt: skip


def draw_curves(drawn: Sequence[Curve], known: dict[str, Look], results: Results) -> Any:
    """One figure of several curves, three side by side."""
    blocks = [drawn[at : at + COLUMNS] for at in range(0, len(drawn), COLUMNS)]
    width = min(COLUMNS, len(drawn))
    figure = new_figure(WIDTH if width > 1 else WIDTH * 0.62, 4.6 * len(blocks) + 0.5)
    grid = figure.subplots(2 * len(blocks), width, squeeze=False, height_ratios=(3, 2) * len(blocks))
    shown = {name: look for name, look in known.items() if any(_values(curve, name, False) for curve in drawn)}
    for row, block in enumerate(blocks):
        for column in range(width):
            pair = grid[2 * row][column], grid[2 * row + 1][column]
            if column < len(block):
                _panels(pair, block[column], shown, is_gpu(results), (column, width))
            else:
                pair[0].set_visible(False)
                pair[1].set_visible(False)
    _legend(figure, shown, drawn, is_gpu(results))
    dtypes = ", ".join(dict.fromkeys(curve.dtype for curve in drawn if curve.dtype))
    caption = f"{conditions(results).line()}, {dtypes}\nMedian over turns; bands: 10th to 90th percentile."
    failed = textwrap.wrap(_failures(drawn), 130 if width > 1 else 85)
    figure.supxlabel(caption + "\n " * len(failed), x=0.01, ha="left", fontsize=7, color=MUTED)
    figure.text(0.01, 0.008, "\n".join(failed), fontsize=7, color=FAILED, va="bottom")
    return figure


def draw(results: Results, out: Path, ending: str = "svg", groups: Sequence[str] = ()) -> list[Path]:
    """Writes the figures of a file, or of the named groups, into a folder: `scaling-<family>` and `overview`.

    Returns what it wrote. Raises Unreadable for an unknown group.
    """
    known = looks([record for records in results.chosen(()).values() for record in records])
    chosen, paths = results.chosen(groups), []
    stem = re.sub(r"-?\d{4}-\d{2}-\d{2}$", "", results.path.stem)
    with drawing():
        for group, records in chosen.items():
            for family, members in families(group, records).items():
                found = curves(members)
                for dtype in dict.fromkeys(curve.dtype for curve in found):
                    several = len({curve.dtype for curve in found}) > 1
                    figure = draw_curves([one for one in found if one.dtype == dtype], known, results)
                    name = "-".join(filter(None, ("scaling", family, dtype if several else "", stem)))
                    paths.append(out / f"{name.replace('_', '-')}.{ending}")
                    save(figure, paths[-1])
        figure = overview(results, known, groups)
        if figure is not None:
            paths.append(out / f"overview-{stem}.{ending}")
            save(figure, paths[-1])
    return paths
