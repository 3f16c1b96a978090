"""Markdown of a report's tables, figures and facts."""

from __future__ import annotations

from collections.abc import Sequence

from tss.report.style import Picture
from tss.report.tables import Table, text


def table(data: Table) -> str:
    """Return a table and its caption."""
    sides = ["---" if form is text else "---:" for form in data.columns.values()]
    lines = [list(data.columns), sides]
    lines += [[_cell(form(value)) for form, value in zip(data.columns.values(), row, strict=True)] for row in data.rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{body}\n\n{data.caption}" if data.caption else body


def figure(picture: Picture) -> str:
    """Return an image that refers to the figure's file in `plots/`, with the caption as its text."""
    return f"![{picture.caption}](plots/{picture.name}.svg)"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a list of names and values."""
    return "\n".join(f"- {name}: {value}" for name, value in pairs)


def _cell(shown: str) -> str:
    """Escape what would end a cell, and HTML."""
    return shown.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
