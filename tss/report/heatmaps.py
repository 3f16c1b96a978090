"""Heat maps: the matrix, gates by layer and task, gate overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tss.report.names import distinct_parts, number, shorten
from tss.report.overlap import Overlap
from tss.report.run import Run
from tss.report.style import GRID, Picture, new_figure, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL_WIDTH = 10.5
MOST_CELLS, MOST_COLUMNS, MOST_PIXELS, MOST_NAMES = 30_000, 100, 500, 50
"""Maximum cells and columns drawn one by one; above them, maximum pixels and names on each side of an image."""
MOST_HOVERS = 10_000
"""Maximum number of cells with hover text: each takes a line of the page; above it, no cell has one."""
MOST_ROWS = 40
"""Rows of many columns above which no numbers are printed: too small to read, too many to draw; the CSV has them."""


def matrix_picture(run: Run, name: str) -> Picture:
    """Draw the matrix a[i][j] as a heat map with printed numbers; unmeasured cells are blank."""
    count = len(run.tasks)
    values = np.array(run.matrix, dtype=float)  # None becomes NaN
    values = values.reshape(count, count)
    rows = [f"after {i + 1}  {shorten(t, 22)}" for i, t in enumerate(run.tasks)]
    figure = heat_map(
        values, rows, [shorten(t, 22) for t in run.tasks], bounds=(0, 100), bar="score (0 to 100)", wide=0.62
    )
    caption = (
        "Row: the state after learning that task. Column: the task it is tested on, with its own main metric. "
        "The diagonal is a task just learned; reading down a column shows whether it is forgotten. Blank: not measured."
    )
    return picture(figure, name, caption, hover_texts(values, run.tasks, run.tasks, "after {} on {}: {}"))


def layers_picture(
    per_task: dict[str, dict[str, float]], name: str, *, what: str, scale: float, caption: str, digits: int = 1
) -> Picture | None:
    """Draw a value of every adapter layer (rows) for every task (columns); None if nothing was recorded."""
    layers = list(dict.fromkeys(layer for values in per_task.values() for layer in values))
    if not layers:
        return None
    grid = (
        np.array([[values.get(layer, np.nan) for values in per_task.values()] for layer in layers], dtype=float) * scale
    )
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    figure = heat_map(
        grid,
        distinct_parts(layers),
        [shorten(t, 22) for t in per_task],
        bounds=(low, high),
        bar=what,
        wide=0.62,
        tall=0.2,
        digits=digits,
    )
    texts = hover_texts(grid, layers, list(per_task), f"{{}}, {{}}: {{}} ({what})", digits + 1)
    return picture(figure, name, caption, texts)


def overlap_picture(overlap: Overlap, name: str) -> Picture:
    """Draw the Jaccard index of the gates of every two tasks: the lower triangle without the diagonal."""
    size = len(overlap.tasks)
    grid = overlap.jaccard.copy()
    grid[np.triu_indices(size)] = np.nan
    mean, expected = overlap.mean_off_diagonal()
    labels = [shorten(t, 22) for t in overlap.tasks]
    low = min(float(np.nanmin(grid)), expected) - 0.02  # keeps the line for chance inside the colour bar
    figure = heat_map(
        grid[1:, :-1],
        labels[1:],
        labels[:-1],
        bounds=(low, 1.0),
        bar="Jaccard index",
        wide=0.62,
        digits=2,
        mark=expected,
    )
    caption = (
        f"Share of the gates open in either task that are open in both. Mean over pairs {mean:.3f}; gates of the "
        f"same densities chosen independently would share {expected:.3f} (line on the colour bar). "
        "Tasks that start from a copy of the scores before them share more than chance, and neighbours share most."
    )
    cells = hover_texts(grid[1:, :-1], overlap.tasks[1:], overlap.tasks[:-1], "{} and {}: {}", digits=3)
    return picture(figure, name, caption, cells)


def hover_texts(
    grid: np.ndarray, rows: Sequence[str], columns: Sequence[str], form: str, digits: int = 2
) -> list[list[str]]:
    """Return the hover text of each cell: row, column and value, with full names and digits; none for large maps."""
    if grid.size > MOST_HOVERS or is_large(grid):
        return []
    return [
        [
            "" if np.isnan(value) else form.format(row, column, number(value, digits))
            for column, value in zip(columns, line, strict=True)
        ]
        for row, line in zip(rows, grid, strict=True)
    ]


def is_large(grid: np.ndarray) -> bool:
    """Return whether a map is drawn as an image of averaged cells."""
    return grid.size > MOST_CELLS or grid.shape[1] > MOST_COLUMNS


def heat_map(
    grid: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    bounds: tuple[float, float],
    bar: str,
    wide: float,
    tall: float = 0.36,
    digits: int = 1,
    mark: float | None = None,
) -> Figure:
    """Draw a labelled heat map with printed numbers, legible from 2 to 40 columns.

    Args:
        grid: float array (rows, columns); NaN stays blank.
        bounds: values at the two ends of the colour bar.
        bar: label of the colour bar, with its unit.
        wide, tall: maximum cell size in inches; cells shrink until the figure is `FULL_WIDTH` inches wide.
        mark: a value to mark on the colour bar.
    """
    import matplotlib

    count_rows, count_columns = grid.shape
    if is_large(grid):
        return _large_map(grid, rows, columns, bounds=bounds, bar=bar)
    margin = 0.075 * max(map(len, rows), default=1) + 1.1
    cell = min(wide, (FULL_WIDTH - margin) / max(count_columns, 1))
    font = min(8.0, cell * 72 * 0.42)
    height = min(tall, max(cell, 0.17)) if count_columns > 12 else tall
    figure = new_figure(margin + cell * count_columns, 1.35 + height * count_rows)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    shown = axes.pcolormesh(
        np.ma.masked_invalid(grid), cmap=colours, vmin=bounds[0], vmax=bounds[1], edgecolors="none", linewidth=0
    )
    axes.invert_yaxis()
    axes.set_xticks(np.arange(count_columns) + 0.5, columns, rotation=90 if count_columns > 9 else 35)
    axes.set_yticks(np.arange(count_rows) + 0.5, rows)
    _align(axes, count_columns)
    axes.tick_params(labelsize=min(8.5, max(font * 1.15, 5.5)), top=False, bottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if count_rows <= MOST_ROWS or count_columns <= 12:
        _print_numbers(axes, grid, bounds, font, digits)
    colour_bar = figure.colorbar(shown, ax=axes, fraction=0.025, pad=0.015, aspect=30)
    colour_bar.set_label(bar)
    colour_bar.outline.set_visible(False)  # type: ignore[operator]
    if mark is not None:
        colour_bar.ax.axhline(mark, color="#ffffff", linewidth=1.5)
    axes.hlines(np.arange(count_rows + 1), 0, count_columns, color=GRID, linewidth=0.3)
    return figure


def _large_map(
    grid: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, bounds: tuple[float, float], bar: str
) -> Figure:
    """Draw a map with very many cells: block means as an image, with names of some rows and columns."""
    import matplotlib

    down, across = (-(-count // MOST_PIXELS) for count in grid.shape)
    padded = np.full((-(-grid.shape[0] // down) * down, -(-grid.shape[1] // across) * across), np.nan)
    padded[: grid.shape[0], : grid.shape[1]] = grid
    blocks = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across)
    known = np.isfinite(blocks)
    count = known.sum(axis=(1, 3))
    total = np.where(known, blocks, 0).sum(axis=(1, 3))
    means = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    figure = new_figure(FULL_WIDTH, min(FULL_WIDTH, 2 + 0.17 * grid.shape[0]))
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    extent = (0, grid.shape[1], grid.shape[0], 0)
    shown = axes.imshow(
        np.ma.masked_invalid(means), cmap=colours, vmin=bounds[0], vmax=bounds[1], aspect="auto",
        interpolation="nearest", extent=extent,
    )  # fmt: skip
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        every = -(-len(names) // MOST_NAMES)
        axis.set_ticks(np.arange(0, len(names), every) + 0.5, list(names)[::every])
    axes.tick_params(labelsize=6, top=False, bottom=False)
    axes.xaxis.tick_top()
    for label in axes.get_xticklabels():
        label.set_rotation(90)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, fraction=0.025, pad=0.015, aspect=30).set_label(bar)
    return figure


def _align(axes, count_columns: int) -> None:  # noqa: ANN001
    axes.xaxis.tick_top()
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("center" if count_columns > 9 else "left")
        label.set_rotation_mode("default" if count_columns > 9 else "anchor")


def _print_numbers(axes, grid: np.ndarray, bounds: tuple[float, float], font: float, digits: int) -> None:  # noqa: ANN001
    """Print one number per cell, black on bright colours and white on dark ones."""
    low, high = bounds
    for (i, j), value in np.ndenumerate(grid):
        if np.isnan(value):
            continue
        bright = (value - low) / (high - low) > 0.62
        colour = "#000000" if bright else "#ffffff"
        text = axes.text(j + 0.5, i + 0.5, number(value, digits), ha="center", va="center", fontsize=font, color=colour)
        text.set_in_layout(False)  # inside its cell anyway, and measuring thousands is slow
