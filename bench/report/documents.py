"""The documents' numbers and figures, each section from the result file that it names.

    <!-- measured:SELECTION FILE -->
    written by `python -m bench.report update`
    <!-- /measured -->

SELECTION is "headlines" (conditions, targets, table and figure) or "cases:GROUP,GROUP"; FILE is relative to the root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.core.machine import ROOT
from bench.report.results import Results, Unreadable, load
from bench.report.tables import failures, headlines, paragraph, summary_table, tables, targets_table

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "measurements-cpu.md")
SECTION = re.compile(r"<!-- measured:(\S+) (\S+) -->\n(.*?)<!-- /measured -->", re.S)


def figure_of(results: Results) -> Path:
    """Return the path of the figure for the device of these results."""
    return ROOT / "docs" / "images" / f"measured-{results.device}.svg"


def _headlines(results: Results, document: Path) -> str:
    image = Path(os.path.relpath(figure_of(results), document.parent)).as_posix()
    notes = [one for one in (results.ceilings(), results.busy()) if one]
    return "\n\n".join([
        paragraph(f"{results.conditions()} (`{results.name}`). {' '.join(notes)}"), targets_table(results),
        summary_table(headlines(results)), f"![Times of the competitors over ours, by operation]({image})",
        *failures(results),
    ])  # fmt: skip


def _text(selection: str, results: Results, document: Path) -> str:
    name, _, groups = selection.partition(":")
    if name == "headlines":
        return _headlines(results, document)
    if name == "cases":
        return tables(results, [group for group in groups.split(",") if group])
    raise Unreadable(f"{document}: no selection {selection!r}: write headlines, or cases:GROUP,GROUP")


def _sections(document: Path) -> Iterator[re.Match[str]]:
    text = document.read_text(encoding="utf-8")
    if len(re.findall(r"<!-- /?measured\b", text)) != 2 * len(list(SECTION.finditer(text))):
        raise Unreadable(f"{document}: markers come in pairs: <!-- measured:SELECTION FILE --> and <!-- /measured -->")
    return SECTION.finditer(text)


def filled(document: Path, newest: Results | None = None) -> str:
    """Return a document's text with regenerated sections. Raises Unreadable.

    Each is made from its file, or from `newest` if the device is the same.
    """

    def section(found: re.Match[str]) -> str:
        results = load(ROOT / found[2])
        if newest is not None and newest.device == results.device:
            results = newest
        return f"<!-- measured:{found[1]} {results.name} -->\n{_text(found[1], results, document)}\n<!-- /measured -->"

    list(_sections(document))
    return SECTION.sub(section, document.read_text(encoding="utf-8"))


def update(newest: Results, documents: Sequence[Path] = DOCUMENTS) -> list[Path]:
    """Write the sections for a result file's device, and their figure; return the paths written."""
    from bench.report.figure import draw

    texts = {document: filled(document, newest) for document in documents}
    if not any(newest.name in text for text in texts.values()):
        raise Unreadable(f"no document has a section of a {newest.device}: add <!-- measured:headlines FILE --> to one")
    for document, text in texts.items():
        document.write_text(text, encoding="utf-8")
    draw(newest, figure_of(newest))
    return [*texts, figure_of(newest)]


def _shown(results: Results) -> set[str]:
    """Return the labels of the committed figure's bars."""
    path = figure_of(results)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return set(re.findall(r'<g id="([^"]*: [^"]*)">', text))


def differing(documents: Sequence[Path] = DOCUMENTS) -> list[str]:
    """Return the documents and figures that differ from their result files, one line each."""
    from bench.report.figure import label

    wrong = [
        f"{document}: its sections differ from their files"
        for document in documents
        if filled(document) != document.read_text(encoding="utf-8")
    ]
    for document in documents:
        for found in _sections(document):
            if not found[1].startswith("headlines"):
                continue
            results = load(ROOT / found[2])
            bars = {
                label(line, one) for line in headlines(results) for one in line.summaries if one.role != "ours"
            }  # fmt: skip
            if _shown(results) != bars:
                wrong.append(f"{figure_of(results)}: its bars are not the ratios of {results.name}")
    return wrong
