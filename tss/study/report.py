"""Report of a study: Markdown, one HTML page, CSV tables and figures, all generated from its runs only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tss.errors import StateError
from tss.io import write_text
from tss.report import header, html, markdown, sections
from tss.report.part import Part
from tss.report.style import drawing
from tss.report.tables import Table
from tss.study import tables
from tss.study.facts import facts_of, notes_of, settings_table
from tss.study.figures import Point, bytes_picture
from tss.study.results import Place, Study, cost_of, read_study, spread, summaries
from tss.study.tables import Summaries, mean_of, shown_spread

FOOTER = (
    "<footer>Written by tss. The same tables and figures as Markdown are in <code>report.md</code>, plain numbers in "
    "<code>tables/</code>, the figures in <code>plots/</code>.</footer>"
)


@dataclass(frozen=True)
class StudyReport:
    """Path of the HTML file, the table of scores as Markdown, and descriptions of damaged runs."""

    path: Path
    summary: str
    damage: list[str]


def build(folder: Path | str, output: Path | str | None = None) -> StudyReport:
    """Write the report of a complete or partial study.

    Args:
        folder: folder of the study.
        output: folder for `report.html`, `report.md`, `tables/` and `plots/`; None: the study's own folder.

    Raises:
        StateError: the folder contains no study, or no run of the study has finished.
    """
    study = read_study(folder)
    target = Path(folder if output is None else output)
    if not study.runs:
        error = next((f": {name} failed: {text}" for name, text in study.failed.items()), "")
        raise StateError(f"{folder}: no run of the study has finished, so there is nothing to report yet{error}")
    found = summaries(study)
    with drawing():
        parts = assemble(study, found)
    facts, notes = facts_of(study), notes_of(study)
    title = f"Study of {len(study.rows)} methods"
    body = [html.element("h1", title), html.cards(cards(study, found)), html.facts(facts)]
    body += [*(html.prose("p", note, "note") for note in notes), html.navigation([part.title for part in parts])]
    text = [f"# {title}", markdown.facts(facts), *(f"> {note}" for note in notes)]
    for part in parts:
        body.append(html.section(part.title, part.parts))
        text += [f"## {part.title}", *part.text] if part.text else []
        for drawn in part.pictures:
            write_text(target / "plots" / f"{drawn.name}.svg", drawn.svg)
    for table in tables.raw_tables(study, found):
        write_text(target / "tables" / f"{table.name}.csv", table.csv())
    write_text(target / "report.md", "\n\n".join(text) + "\n")
    write_text(target / "report.html", html.page(title, [*body, FOOTER]))
    scores = tables.scores_table(study, found)
    return StudyReport(target / "report.html", markdown.table(Table("", scores.columns, scores.rows)), study.damage)


def assemble(study: Study, found: Summaries) -> list[Part]:
    """Return all sections that have content: over all runs, then of one run per method."""
    scores, paired, validation = Part("Scores"), Part("Paired differences"), Part("Validation against test")
    costs, settings = Part("Time, memory and bytes"), Part("Settings")
    scores.tabulate(tables.scores_table(study, found), colours=True)
    scores.tabulate(tables.families_table(study, found))
    paired.tabulate(tables.paired_table(study, found))
    validation.tabulate(tables.validation_table(study))
    costs.tabulate(tables.efficiency_table(study))
    costs.draw(bytes_picture(points(study, found)), least=640)
    settings.tabulate(settings_table(study))
    place, runs = study.one_place()
    single = [sections.matrices(runs), sections.learning_curves(runs), sections.examples(runs)]
    for part in single:
        part.open_with(_about_one_place(study, place, [run.label for run in runs]))
    every = [run for of_row in study.runs.values() for run in of_row.values()]
    parts = [scores, paired, validation, costs, settings, *single, sections.names(every)]
    return [part for part in parts if part.parts]


def cards(study: Study, found: Summaries) -> list[str]:
    """Return a card for each method: its score at the end and its forgetting, means over its runs."""
    made = []
    for row in study.rows:
        values = list(found.get(row, {}).values())
        average = spread(value["average"] for value in values)
        lost = spread(value["forgetting"] for value in values)
        count = f"{len(values)} run{'s' * (len(values) != 1)}"
        shown = shown_spread(average)
        made.append(header.run_card(row, shown, lost.mean if lost else None, f"mean score at the end, {count}", 1))
    return made


def points(study: Study, found: Summaries) -> list[Point]:
    """Return the methods that have both a final score and bytes kept for prediction."""
    there = []
    for index, row in enumerate(study.rows):
        score = spread(values["average"] for values in found.get(row, {}).values())
        kept = mean_of([cost_of(run) for run in study.runs.get(row, {}).values()], "total_bytes")
        if score is not None and kept:
            there.append(Point(row, index, kept, score))
    return there


def _about_one_place(study: Study, place: Place, shown: list[str]) -> str:
    """Return which of the runs a section shows."""
    order, seed = place
    which = f"One run per method: order {order}, seed {seed}, "
    if missing := [row for row in study.rows if row not in shown]:
        return f"{which}the first with a finished run of the most methods; not of {', '.join(missing)}."
    return f"{which}the first order and seed with a finished run of every method. It is an example, not a mean."
