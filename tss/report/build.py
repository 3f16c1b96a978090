"""Build a report: read the runs, compute metrics, draw figures, and write the page, plots and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tss.errors import StateError
from tss.io import check_folder
from tss.metrics import continual
from tss.report import header, html, sections
from tss.report.reading import note_other_data, read_run
from tss.report.run import Run
from tss.report.style import Picture, drawing
from tss.report.tables import Table

FOOTER = (
    "<footer>Written by tss. The plots are beside this file in <code>plots/</code>, "
    "the tables as CSV in <code>tables/</code>.</footer>"
)


@dataclass(frozen=True)
class Report:
    """Path of the HTML file, and one line for each part of the runs that is not as they wrote it."""

    path: Path
    damage: list[str]


def build(
    runs: Sequence[Path | str] | Path | str,
    output: Path | str,
    *,
    one: Sequence[Path | str] = (),
) -> Report:
    """Write the report of one run, or of several runs side by side.

    Args:
        runs: run folders; the first one gives the headline numbers. Unfinished runs are reported as far as they got.
        output: an `.html` file, or a folder in which `report.html` is written. Plots (SVG) are written to `plots/` and
            tables (CSV) to `tables/` next to it.
        one: run folders of single tasks learned alone, for the transfer metric.

    Raises:
        StateError: a folder is not a run, a run in `one` has more than one task, or the output cannot be written.
    """
    folders = [runs] if isinstance(runs, Path | str) else list(runs)
    if not folders:
        raise StateError("no run to report; give at least one run folder")
    output = Path(output)
    target = output if output.suffix == ".html" else output / "report.html"
    for folder in (target.parent, target.parent / "plots", target.parent / "tables"):
        check_folder(folder, "name a folder, or a file that ends in .html")
    if target.is_dir():
        raise StateError(f"{target} is a folder where the report would be written; name another one, or a file")
    read = [read_run(folder) for folder in folders]
    note_other_data(read)
    _tell_apart(read)
    alone = _alone([read_run(folder) for folder in one])
    summaries = [summarise(run, alone) for run in read]
    with drawing():
        chosen = sections.assemble(read, summaries, alone)
    pictures: list[Picture] = [p for part in chosen for p in part.pictures]
    tables: list[Table] = [t for part in chosen for t in part.tables]
    body = [header.header(read, summaries), html.navigation([p.title for p in chosen])]
    body += [html.section(part.title, part.parts) for part in chosen]
    body.append(FOOTER)
    for folder in ("plots", "tables"):
        (target.parent / folder).mkdir(parents=True, exist_ok=True)
    for drawn in pictures:
        (target.parent / "plots" / f"{drawn.name}.svg").write_text(drawn.svg, encoding="utf-8")
    for table in tables:
        (target.parent / "tables" / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    target.write_text(html.page(header.title(read), body), encoding="utf-8")
    damage = [f"{run.folder}: {line}" for run in read for line in run.damage]
    return Report(target, damage)


def summarise(run: Run, alone: dict[str, float] | None = None) -> dict[str, Any]:
    """Return the continual metrics over the tasks learned so far.

    Metrics that need more than the matrix come from a complete run's own summary.
    """
    tasks = run.tasks[: run.learned]
    if not tasks:
        return {}
    one = [alone.get(t) for t in tasks] if alone else None
    result = continual.summary(run.square(), one)
    if run.complete:
        result |= {k: v for k, v in run.own_summary.items() if result.get(k) is None}
    return result


def _alone(runs: list[Run]) -> dict[str, float]:
    """Return task -> its score learned alone."""
    scores: dict[str, float] = {}
    for run in runs:
        if len(run.tasks) != 1:
            raise StateError(f"{run.folder}: the comparison needs a run of one task, this one has {len(run.tasks)}")
        if run.matrix[0][0] is not None:
            scores[run.tasks[0]] = run.matrix[0][0]
    return scores


def _tell_apart(runs: list[Run]) -> None:
    """Make labels unique by appending the method to equal ones, then the folder's name, then their position.

    If all runs share one label and have different methods, the methods become the labels.
    """
    if len({run.label for run in runs}) == 1 and len({run.method for run in runs}) == len(runs) > 1:
        for run in runs:
            run.series, run.label = run.label, run.method
    numbered = {id(run): str(place) for place, run in enumerate(runs, start=1)}
    for extra in (lambda r: r.method, lambda r: r.folder.name, lambda r: numbered[id(r)]):
        labels = [run.label for run in runs]
        for run in runs:
            if labels.count(run.label) > 1 and extra(run) != run.label:
                run.label = f"{run.label} · {extra(run)}"
