"""One section of a report, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tss.report import html, markdown
from tss.report.style import Picture
from tss.report.tables import Table

HALF_PAGE = 520
"""Maximum width of each of two figures side by side, in CSS pixels."""


@dataclass
class Part:
    """One section: its title, its content in order, and the pictures and tables written next to the page.

    Attributes:
        title: heading of the section.
        parts: HTML.
        text: the same as Markdown, without what opens on a click.
        pictures: figures, for files.
        tables: tables, for files.
    """

    title: str
    parts: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def draw(self, picture: Picture | None, least: int = 0) -> None:
        """Add a figure, if there is one."""
        if picture is not None:
            self.draw_beside([picture], least)

    def draw_beside(self, pictures: Sequence[Picture | None], least: int = 0) -> None:
        """Add figures, side by side if all are narrow and the page is wide, otherwise below each other."""
        there = [picture for picture in pictures if picture is not None]
        narrow = len(there) > 1 and all(picture.width <= HALF_PAGE for picture in there)
        self.pictures += there
        self.text += map(markdown.figure, there)
        figures = "".join(html.figure(picture, least) for picture in there)
        self.parts.append(f'<div class="pair">{figures}</div>' if narrow else figures)

    def tabulate(self, table: Table | None, *, show: bool = True, colours: bool = False) -> None:
        """Add a table, if there is one; with `show=False` it is only written as CSV."""
        if table is not None and table.rows:
            self.tables.append(table)
            if show:
                self.parts.append(html.table(table, colours))
                self.text.append(markdown.table(table))

    def head(self, title: str) -> None:
        """Add a heading inside the section."""
        self.parts.append(html.element("h3", title))
        self.text.append(f"### {title}")

    def say(self, content: str, css: str = "") -> None:
        """Add a paragraph."""
        self.parts.append(html.prose("p", content, css))
        self.text.append(content)

    def open_with(self, content: str) -> None:
        """Put a paragraph before everything else, where there is anything."""
        if self.parts:
            self.parts.insert(0, html.prose("p", content, "caption"))
        if self.text:
            self.text.insert(0, content)

    def list_facts(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Add names and values."""
        self.parts.append(html.facts(pairs))
        self.text.append(markdown.facts(pairs))

    def fold(self, title: str, table: Table) -> None:
        """Add a table that opens on a click; Markdown, which cannot fold, does without it."""
        self.tables.append(table)
        self.parts.append(html.opened(title, html.table(table)))
