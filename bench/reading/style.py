"""How the figures of measurements look: that of the reports (tss/report/style.py), on white, for a README's width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from bench.measure.report import main_of
from bench.reading.files import Record
from tss.report.style import INK, MUTED, RUN_COLOURS, LineStyle, drawing, new_figure

__all__ = ["FAILED", "INK", "MUTED", "WIDTH", "Look", "drawing", "looks", "new_figure", "save"]

WIDTH = 8.8  # inches: 845 CSS pixels, what a README is wide
PNG_DOTS = 192  # per inch
FAILED = "#c1121f"
_OURS = RUN_COLOURS[0]
# What other variants of ours, floors and rivals may take; markers tell apart what colours may not.
_COLOURS = {"ours": ("#56b4e9", "#004a7c", "#7fa8c9"), "floor": ("#4d4d4d", "#9a9a9a", "#737373"),
            "rival": ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8a5a00")}  # fmt: skip
_MARKERS = {"ours": "o8h", "floor": "v^<", "rival": "sDPX*"}


class Look(NamedTuple):
    """How one variant is drawn, the same in all figures of a file."""

    colour: str
    marker: str
    line: LineStyle
    width: float


def looks(records: Sequence[Record]) -> dict[str, Look]:
    """Every variant's look; what the ratios are to comes first, and heaviest.

    Variants that are ever compared with each other differ in colour and marker; others may share them.
    """
    roles = {name: variant["role"] for record in records for name, variant in record["variants"].items()}
    beside = {name: {other for record in records if name in record["variants"] for other in record["variants"]}
              for name in roles}  # fmt: skip
    mains = dict.fromkeys(name for record in records if (name := main_of(record)) is not None)
    places: dict[str, int] = {}
    for name, role in roles.items():
        if name not in mains:
            taken = {places[other] for other in beside[name] if other in places and roles[other] == role}
            places[name] = next(place for place in range(len(roles)) if place not in taken)
    found = {name: Look(_OURS, "o", "-", 2.2) for name in mains}
    for name, place in places.items():
        role, colours, markers = roles[name], _COLOURS[roles[name]], _MARKERS[roles[name]]
        line = "--" if role == "floor" else "-" if place < len(colours) else ":"
        found[name] = Look(colours[place % len(colours)], markers[place % len(markers)], line, 1.3)
    order = list(_COLOURS)
    return dict(sorted(found.items(), key=lambda one: (one[0] not in mains, order.index(roles[one[0]]))))


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as its path's ending says: no date, no version, so that the same file gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    svg = path.suffix == ".svg"
    nothing = {"Date": None, "Creator": None} if svg else {"Software": None}
    with matplotlib.rc_context({"svg.fonttype": "path"}):  # a README's reader may not have the font
        figure.savefig(path, dpi=72 if svg else PNG_DOTS, facecolor="white", metadata=nothing)
