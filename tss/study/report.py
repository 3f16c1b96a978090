"""Report of a study: Markdown, one HTML page, CSV tables and a figure, all generated from its runs only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tss.errors import StateError
from tss.io import write_text
from tss.report import html
from tss.report.heatmaps import FULL_WIDTH
from tss.report.names import size
from tss.report.style import Picture, drawing, new_figure, picture, run_colour
from tss.report.tables import Table
from tss.study import tables
from tss.study.results import Study, cells_in, cost_of, read_study, spread, summaries
from tss.study.tables import Summaries, markdown, mean_of

FOOTER = (
    "<footer>Written by tss. The same tables as Markdown are in <code>report.md</code>, plain numbers in "
    "<code>tables/</code>, the figure in <code>plots/</code>.</footer>"
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
    scores = tables.scores_table(study, found)
    sections: list[tuple[str, list[Table | None], Picture | None]] = []
    with drawing():
        sections.append(("Scores", [scores, tables.families_table(study, found)], None))
        sections.append(("Paired differences", [tables.paired_table(study, found)], None))
        sections.append(("Time, memory and bytes", [tables.efficiency_table(study)], bytes_picture(study, found)))
    facts, notes = facts_of(study), notes_of(study)
    title = f"Study of {len(study.rows)} methods"
    body = [html.element("h1", title), html.facts(facts), *(html.element("p", note, "note") for note in notes)]
    text = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts), "", *(f"> {note}\n" for note in notes)]
    for heading, made, drawn in sections:
        there = [table for table in made if table is not None]
        body.append(html.section(heading, [*map(html.table, there), html.figure(drawn, least=640)]))
        text += [f"## {heading}", "", *(f"{markdown(table)}\n" for table in there)]
        if drawn is not None:
            text += [f"![{drawn.caption}](plots/{drawn.name}.svg)", ""]
            write_text(target / "plots" / f"{drawn.name}.svg", drawn.svg)
    for table in tables.raw_tables(study, found):
        write_text(target / "tables" / f"{table.name}.csv", table.csv())
    write_text(target / "report.md", "\n".join(text))
    write_text(target / "report.html", html.page(title, [*body, FOOTER]))
    return StudyReport(target / "report.html", markdown(Table("", scores.columns, scores.rows)), study.damage)


def facts_of(study: Study) -> list[tuple[str, str]]:
    """Return the facts about how the numbers were produced."""
    cells = cells_in(study)
    first = cells[0][2]
    orders = {order: " ".join(run.tasks) for _, (order, _), run in cells}
    seeds = sorted({seed for _, (_, seed), _ in cells})
    kinds = {
        key: sorted({str(run.env.get(key)) for _, _, run in cells})
        for key in ("precision", "device", "threads", "torch")
    }
    return [
        ("runs", f"{len(cells)} of {sum(study.planned.values())} finished"),
        ("backbone", str(first.config.get("backbone"))),
        ("tasks", f"{len(first.tasks)}, in {len(orders)} order{'s' * (len(orders) != 1)}"),
        *((f"order {name}", tasks) for name, tasks in orders.items()),
        ("seeds", ", ".join(map(str, seeds))),
        *((key, " or ".join(values)) for key, values in kinds.items()),
    ]


def notes_of(study: Study) -> list[str]:
    """Return notes on failed, unfinished and damaged runs."""
    notes = [f"{name} failed: {error}" for name, error in study.failed.items()]
    if rest := [name for name in study.unfinished if name not in study.failed]:
        notes.append(f"{len(rest)} runs have not finished and are in none of the tables: {', '.join(rest)}.")
    return [*notes, *study.damage]


def bytes_picture(study: Study, found: Summaries) -> Picture | None:
    """Plot the final score against all bytes kept at the end, one point per method that has both; None without any."""
    points = []
    for index, row in enumerate(study.rows):
        score = spread(values["average"] for values in found.get(row, {}).values())
        kept = mean_of([cost_of(run) for run in study.runs.get(row, {}).values()], "total_bytes")
        if score is not None and kept:
            points.append((row, index, kept / 1024, score))
    if not points:
        return None
    figure = new_figure(FULL_WIDTH, 3.8)
    axes = figure.add_subplot()
    for _, index, kept, score in points:
        axes.errorbar(
            [kept],
            [score.mean],
            yerr=[score.deviation or 0.0],
            fmt="o",
            color=run_colour(index),
            capsize=3,
            markersize=6,
        )
    for place, (row, _, kept, score) in enumerate(points):
        # place labels of points that are close together below each other
        above = sum(abs(math.log(kept / k)) < 0.1 and abs(score.mean - s.mean) < 2 for _, _, k, s in points[:place])
        axes.annotate(row, (kept, score.mean), (7, 4 - 10 * above), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(lambda kib, _: size(1024 * kib))
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_xlabel("kept to answer all tasks")
    axes.set_ylabel("score at the end")
    axes.margins(x=0.15, y=0.12)
    caption = (
        "Mean score at the end and its standard deviation over orders and seeds, against all bytes that "
        "prediction needs: gates or weights and heads of all tasks, and weights that they share. Upper left is better."
    )
    return picture(figure, "bytes", caption)
