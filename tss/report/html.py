"""HTML elements of a report; all text that comes from a run is escaped here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib import resources

from tss.report.style import Picture
from tss.report.tables import Table, text


def page(title: str, body: Sequence[str]) -> str:
    """Return a self-contained document that includes the style sheet."""
    css = (resources.files("tss.report") / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="tss">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def element(tag: str, content: str, css: str = "") -> str:
    """Return an element that contains plain text."""
    start = f'<{tag} class="{css}">' if css else f"<{tag}>"
    return f"{start}{escape(content)}</{tag}>"


def prose(tag: str, content: str, css: str = "", name: str = "") -> str:
    """Return an element that contains plain text, in which words between backticks are code.

    Args:
        tag: name of the element.
        content: its text.
        css: its class, if any.
        name: its id, if any.
    """
    about = "".join(f' {key}="{value}"' for key, value in (("class", css), ("id", name)) if value)
    inner = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(content))
    return f"<{tag}{about}>{inner}</{tag}>"


def section(title: str, parts: Sequence[str]) -> str:
    """Return a section with a heading and an id from `anchor`; an empty string if all its parts are empty."""
    filled = [part for part in parts if part]
    if not filled:
        return ""
    return f'<section id="{anchor(title)}">\n{element("h2", title)}\n' + "\n".join(filled) + "\n</section>"


def anchor(title: str) -> str:
    """Return the id of a section."""
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def navigation(titles: Sequence[str]) -> str:
    """Return links to the sections."""
    return "<nav>" + " ".join(f'<a href="#{anchor(t)}">{escape(t)}</a>' for t in titles) + "</nav>"


def card(what: str, value: str, how: str, css: str = "", under: str = "") -> str:
    """Return one headline number.

    Args:
        what: its name.
        value: the number.
        how: how it was computed.
        css: "good", "bad" or "", the colour of `under`, or of the number without it.
        under: a second, smaller number, with its name.
    """
    first, second = ("", css) if under else (css, "")
    parts = [f'<span class="what">{escape(what)}</span>', f'<b class="{first}">{escape(value)}</b>']
    parts += [f'<span class="under {second}">{escape(under)}</span>'] if under else []
    return f'<div class="card">{"".join(parts)}<span class="how">{escape(how)}</span></div>'


def cards(made: Sequence[str]) -> str:
    """Return headline numbers, as many in a row as fit."""
    return f'<div class="cards">{"".join(made)}</div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a list of names and values."""
    return '<dl class="facts">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>"


def figure(picture: Picture | None, least: int = 0) -> str:
    """Return a figure with its caption; screens narrower than `least` pixels scroll it horizontally."""
    if picture is None:
        return ""
    style = f"width:{picture.width}px;max-width:max(100%,{min(least, picture.width)}px)"
    svg = picture.inline().replace("<svg", f'<svg style="{style}"', 1)
    caption = prose("figcaption", picture.caption, name=f"{picture.name}-caption")
    return f'<figure><div class="scroll">{svg}</div>{caption}</figure>'


def table(data: Table | None, colours: bool = False) -> str:
    """Return a table with its caption; with `colours`, the first cell of each row shows its run's colour."""
    if data is None or not data.rows:
        return ""
    formats = list(data.columns.values())
    sides = ["" if form is text else ' class="n"' for form in formats]
    sides = [' class="w"' if name in data.wide else side for name, side in zip(data.columns, sides, strict=True)]
    head = "".join(f"<th{side}>{escape(name)}</th>" for side, name in zip(sides, data.columns, strict=True))
    rows = []
    for index, row in enumerate(data.rows):
        cells = [escape(form(value)) for form, value in zip(formats, row, strict=True)]
        if colours:
            cells[0] = f'<span class="swatch" style="background:var(--run{index % 6})"></span>{cells[0]}'
        rows.append(
            "<tr>" + "".join(f"<td{side}>{cell}</td>" for side, cell in zip(sides, cells, strict=True)) + "</tr>"
        )
    caption = prose("p", data.caption, "caption") if data.caption else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + f"\n</tbody></table></div>{caption}"
    )


def opened(title: str, content: str) -> str:
    """Return HTML content that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def folded(title: str, content: str) -> str:
    """Return a block of preformatted text that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(content)}</pre></details>"
