"""Documents whose numbers come out of result files: text between two markers is written anew, or checked.

    <!-- measured:SELECTION FILE -->
    made from the file
    <!-- /measured -->

FILE is a result file, from the repository's root; without one the text comes from the file that the command names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.measure.report import failures_of
from bench.reading.files import ROOT, Results, Unreadable, is_gpu, load
from bench.reading.summaries import summary_table, targets_table
from bench.reading.tables import LEGEND, conditions_text, group_table

_MARKER = re.compile(r"<!-- (?:measured:(?P<selection>\S+)(?: (?P<file>\S+))?|(?P<end>/measured)) -->")
_LIKE_MARKERS = re.compile(r"<!--\s*/?measured\b.*?-->", re.S)


def _tables(results: Results, groups: Sequence[str]) -> str:
    chosen = results.chosen(groups)
    return "\n\n".join(group_table(name, records, is_gpu(results)) for name, records in chosen.items())


def _failures(results: Results, groups: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in failures_of(results.content)) or "No check failed."


SELECTIONS: dict[str, Callable[[Results, Sequence[str]], str]] = {
    "summary": summary_table,
    "table": _tables,
    "targets": lambda results, groups: targets_table(results),
    "conditions": lambda results, groups: conditions_text(results),
    "legend": lambda results, groups: LEGEND,
    "failures": _failures,
}


class Section(NamedTuple):
    """A marked stretch of a document: what it shows, of which file if it says so, and where its text lies."""

    document: Path
    line: int
    selection: str
    file: str | None
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.selection}"


def sections_of(document: Path) -> list[Section]:
    """The marked stretches of a document. Raises Unreadable where markers are not in pairs."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{document} cannot be read ({error}): name a Markdown file") from error
    sections, begun = [], None
    for almost in _LIKE_MARKERS.finditer(text):
        if _MARKER.fullmatch(almost[0]) is None:
            line = text.count("\n", 0, almost.start()) + 1
            raise Unreadable(f"{document}:{line}: {almost[0]} is no marker: write <!-- measured:SELECTION FILE -->")
    for marker in _MARKER.finditer(text):
        line = text.count("\n", 0, marker.start()) + 1
        if (begun is None) == (marker["end"] is not None):
            missing = "no beginning before it" if begun is None else f"the one of line {begun[1]} before it has no end"
            raise Unreadable(f"{document}:{line}: marker {marker[0]}: {missing}; markers stand in pairs")
        if begun is None:
            begun = marker, line
        else:
            start, at = begun
            sections.append(Section(document, at, start["selection"], start["file"], start.end(), marker.start()))
            begun = None
    if begun is not None:
        raise Unreadable(
            f"{document}:{begun[1]}: marker {begun[0][0]} has no end: add <!-- /measured --> below its text"
        )
    return sections


def text_of(section: Section, results: Results) -> str:
    """What a section should hold. Raises Unreadable for a selection that there is not."""
    name, _, groups = section.selection.partition(":")
    if name not in SELECTIONS:
        raise Unreadable(f"{section}: no such selection: there are {', '.join(SELECTIONS)}, some with :GROUP,GROUP")
    try:
        return "\n" + SELECTIONS[name](results, [one for one in groups.split(",") if one]) + "\n"
    except Unreadable as error:
        raise Unreadable(f"{section}: {error}") from error


def _served(documents: Sequence[Path], path: Path | None) -> Iterator[tuple[Section, Results]]:
    """Every section that a command for this file is about, with what it shows; None: all, each by its own file."""
    known: dict[Path, Results] = {}
    for section in (section for document in documents for section in sections_of(document)):
        if path is None and section.file is None:
            raise Unreadable(f"{section}: the marker names no file: name one there or on the command line")
        own = None if section.file is None else ROOT / section.file
        if path is not None and own is not None and own.resolve() != path.resolve():
            continue
        chosen = own or path
        assert chosen is not None
        if chosen not in known:
            known[chosen] = load(chosen)
        yield section, known[chosen]


def named(documents: Sequence[Path], path: Path | None = None) -> int:
    """How many sections a command for this file is about. Raises Unreadable for a file that is no result file."""
    if path is not None:
        load(path)
    return sum(1 for _ in _served(documents, path))


def differing(documents: Sequence[Path], path: Path | None = None) -> list[str]:
    """The sections whose text is not what the file gives, one line each.

    path: the file of the sections that name it or none; None: all sections, each of the file that it names.
    """
    return [
        str(section)
        for section, results in _served(documents, path)
        if section.document.read_text(encoding="utf-8")[section.start : section.end] != text_of(section, results)
    ]


def fill(documents: Sequence[Path], path: Path | None = None) -> list[str]:
    """Writes the sections anew, and says which; path as in `differing`. Nothing is written where anything is wrong."""
    filled, texts = [], {}
    served = list(_served(documents, path))
    for section, results in reversed(served):  # from the end: earlier places stay where they are
        text = texts.get(section.document) or section.document.read_text(encoding="utf-8")
        texts[section.document] = text[: section.start] + text_of(section, results) + text[section.end :]
        filled.append(str(section))
    for document, text in texts.items():
        document.write_text(text, encoding="utf-8")
    return filled[::-1]
