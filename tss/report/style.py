"""Style of the figures, and their conversion to SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1b1d22", "#5d626b", "#d9dce1"
# Okabe and Ito's colours, distinguishable with all common forms of colour blindness; one per run, in order.
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
LineStyle = Literal["-", "--", "-.", ":"]
LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
CSS_PIXELS_PER_INCH = 96
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    **{colour: f"var(--run{i})" for i, colour in enumerate(RUN_COLOURS)},
}


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: file name without extension, unique in a report.
        svg: a standalone SVG document in the light colours.
        width: natural width in CSS pixels.
        caption: description in plain text.
    """

    name: str
    svg: str
    width: int
    caption: str

    def inline(self) -> str:
        """Return the SVG element only, with the page's colours and fonts, and ids that are unique in the page."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
        body = (
            re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", body.split(">", 1)[0])
            + ">"
            + body.split(">", 1)[1]
        )
        body = body.replace("xlink:href", "href")
        body = re.sub(r'\bid="([^"]+)"', rf'id="{self.name}-\1"', body)
        body = re.sub(r'(href="#|url\(#)', rf"\g<1>{self.name}-", body)
        for colour, variable in _VARIABLES.items():
            body = body.replace(colour, variable)
        return body.replace("<svg", f'<svg role="img" aria-labelledby="{self.name}-caption"', 1)


@contextmanager
def drawing() -> Iterator[None]:
    """Set Matplotlib's settings for a report's figures, restored afterwards. Text is never parsed as mathematics."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tss",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8.5,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.6,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "lines.linewidth": 1.5,
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of the given size in inches with its own canvas: no pyplot, no global state."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def picture(figure: Figure, name: str, caption: str, cells: Sequence[Sequence[str]] = ()) -> Picture:
    """Render a figure. The SVG contains no date, so that the same run gives the same bytes.

    Args:
        figure: the figure; hover texts refer to its first axes.
        name: name of the file.
        caption: description in plain text.
        cells: hover texts of the cells of a heat map, row by row; no hover for an empty text.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(
        r"(?:'DejaVu Sans'(?:, )?)+(?:sans-serif)?", "var(--sans, 'DejaVu Sans', sans-serif)", buffer.getvalue()
    )
    if cells:
        svg = svg.replace("</svg>", f"{_hovers(figure, cells)}</svg>")
    return Picture(name, svg, round(figure.get_size_inches()[0] * CSS_PIXELS_PER_INCH), caption)


def _hovers(figure: Figure, cells: Sequence[Sequence[str]]) -> str:
    """Return invisible rectangles over the cells of a map, each with its text, which browsers show without a script."""
    place, (width, height) = figure.axes[0].get_position(), figure.get_size_inches() * 72
    tall, wide = place.height * height / len(cells), place.width * width / len(cells[0])
    left, top = place.x0 * width, (1 - place.y1) * height
    return "\n".join(
        f'<rect class="cell" fill="none" pointer-events="all" x="{left + j * wide:.2f}" y="{top + i * tall:.2f}" '
        f'width="{wide:.2f}" height="{tall:.2f}"><title>{escape(text)}</title></rect>'
        for i, row in enumerate(cells)
        for j, text in enumerate(row)
        if text
    )


def run_colour(index: int) -> str:
    """Return the colour of the run at this index; runs after the sixth reuse colours and differ by line style."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def run_style(index: int) -> LineStyle:
    """Return the line style of the run at this index."""
    return LINE_STYLES[index % len(LINE_STYLES)]


def run_legend(figure: Figure, labels: Sequence[str], *, lines: bool) -> None:
    """Add a legend above the panels if there are several runs; with line samples if the figure draws lines."""
    if len(labels) < 2:
        return
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=run_colour(i), linestyle=run_style(i)) if lines else Patch(color=run_colour(i))
        for i in range(len(labels))
    ]
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5))
