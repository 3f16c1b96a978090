"""Tables of the report: raw values for CSV, rounded text for the page."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tss.report.bars import drop
from tss.report.names import duration, number, size
from tss.report.overlap import Overlap
from tss.report.run import Run
from tss.run.run_state import FREE_KEYS, flattened

Format = Callable[[Any], str]
MOST_LETTERS = 240
"""Maximum number of characters of an answer that is shown."""
METRIC_NAMES = {
    "average": "Average",
    "learning": "Learning",
    "forgetting": "Forgetting (FR)",
    "forgetting_chaudhry": "Forgetting (Chaudhry)",
    "forgetting_max": "Forgetting (max)",
    "bwt": "Backward transfer",
    "fwt": "Forward transfer",
    "transfer": "Transfer against one task alone",
    "gap_one": "Gap to one task alone",
    "gap_mtl": "Gap to all tasks at once",
}


def text(value: Any) -> str:
    """Format a value unchanged, `–` for None."""
    return "–" if value is None else str(value)


@dataclass
class Table:
    """A table with raw values.

    Attributes:
        name: CSV file name without extension.
        columns: header -> function that formats a raw value; columns with another format than `text` show numbers.
        rows: raw values, None if missing.
        caption: plain text below the table.
        wide: columns of texts that wrap into lines.
    """

    name: str
    columns: dict[str, Format]
    rows: list[list[Any]] = field(default_factory=list)
    caption: str = ""
    wide: tuple[str, ...] = ()

    def csv(self) -> str:
        """Return the raw values as CSV, with empty cells for None and floats in full precision."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)  # None is empty, and a float is written in full
        return buffer.getvalue()

    def without_empty_columns(self) -> Table:
        """Return the table without columns (other than the first) in which no row has a value."""
        keep = [i for i in range(len(self.columns)) if i == 0 or any(row[i] is not None for row in self.rows)]
        columns = list(self.columns.items())
        return Table(self.name, dict(columns[i] for i in keep), [[r[i] for i in keep] for r in self.rows], self.caption)


def points(value: float | None) -> str:
    """Format a score or mean of scores with two decimals."""
    return number(value, 2)


def change(value: float | None) -> str:
    """Format a difference of scores with its sign."""
    return number(value, 2, signed=True)


def percent(value: float | None) -> str:
    """Format a fraction in [0, 1] as a percentage."""
    return "–" if value is None else f"{100 * value:.1f} %"


def count(value: float | None) -> str:
    """Format a number without decimals, with commas between thousands."""
    return "–" if value is None else f"{value:,.0f}"


def matrix_table(run: Run, name: str) -> Table:
    """Return the matrix: one row per task learned, one column per task tested."""
    rows = [[task, *values] for task, values in zip(run.tasks, run.matrix, strict=True)]
    return Table(name, {"after": text, **dict.fromkeys(run.tasks, points)}, rows)


def metrics_table(runs: Sequence[Run], summaries: Sequence[dict[str, float | None]], name: str) -> Table:
    """Return the continual metrics, one row per run."""
    keys = [k for k in METRIC_NAMES if any(s.get(k) is not None for s in summaries)]
    formats: dict[str, Format] = {METRIC_NAMES[k]: points if k in ("average", "learning") else change for k in keys}
    columns = {"run": text, "method": text, "tasks": text, **formats, "time": duration}
    rows = [
        [run.label, run.method, f"{run.learned}/{len(run.tasks)}", *(summary.get(k) for k in keys), run.seconds]
        for run, summary in zip(runs, summaries, strict=True)
    ]
    caption = (
        "Points of the main metrics, 0 to 100, averaged over tasks without rescaling. F1, ROUGE and BLEU have "
        "different scales: see also the means over families. Forgetting above zero is a loss; FR compares a task's own "
        "row with the last one."
    )
    return Table(name, columns, rows, caption)


def _settings(run: Run) -> list[str]:
    """Return all entries of a run's configuration but its seeds, its order, its name and what changes no result."""
    free = ("seed", "adapters.seed", "tasks", "shuffle", "label", *FREE_KEYS)
    return [f"{key}={value}" for key, value in flattened(run.config).items() if key not in free]


def seeds_table(runs: Sequence[Run], summaries: Sequence[dict[str, float | None]], name: str) -> Table | None:
    """Return mean and standard deviation over runs that differ only in seed or task order; None without such runs."""
    groups: dict[tuple[str, ...], list[dict[str, float | None]]] = {}
    for run, summary in zip(runs, summaries, strict=True):
        if run.complete:
            what = (run.method, *_settings(run), *sorted(run.tasks))
            groups.setdefault(what, []).append(summary)
    groups = {key: members for key, members in groups.items() if len(members) > 1}
    if not groups:
        return None
    rows = []
    for key, members in groups.items():
        cells = []
        for metric in ("average", "learning", "forgetting"):
            values = [v for v in (m.get(metric) for m in members) if v is not None]
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else None)
        rows.append([key[0], len(members), *cells])
    columns = {"method": text, "runs": text, "Average": text, "Learning": text, "Forgetting (FR)": text}
    return Table(
        name,
        columns,
        rows,
        "Mean ± standard deviation (n − 1) over runs that differ only in seed or order of the tasks.",
    )


def families_table(runs: Sequence[Run], name: str) -> Table:
    """Return means over each family, just after learning and in the last row, together with the mean over tasks."""
    families = list(dict.fromkeys(_family(t) for run in runs for t in run.tasks[: run.learned]))
    columns: dict[str, Format] = {"family": text, "tasks": text}
    for run in runs:
        who = f"{run.label}: " if len(runs) > 1 else ""
        columns |= {f"{who}learned": points, f"{who}final": points}
    rows: list[list[Any]] = []
    for family in [*families, None]:
        row: list[Any] = ["mean over tasks" if family is None else family, None]
        for run in runs:
            chosen = [j for j in range(run.learned) if family is None or _family(run.tasks[j]) == family]
            row[1] = max(row[1] or 0, len(chosen))
            row += [_mean([run.own(j) for j in chosen]), _mean([run.matrix[run.learned - 1][j] for j in chosen])]
        rows.append(row)
    over = ["mean over families", len(families)]
    over += [_mean([row[i] for row in rows[:-1]]) for i in range(2, len(columns))]
    rows.append(over)
    return Table(name, columns, rows, "Learned: just after its own training. Final: after the last task of the run.")


def tasks_table(run: Run, name: str) -> Table:
    """Return a table of the tasks: what each is, how well it was learned, and its score at the end."""
    ends, begins = run.by_task("task_end"), run.by_task("task_begin")
    table = Table(
        name,
        {
            **{"#": text, "task": text, "kind": text, "main metric": text, "train": count, "test": count},
            **{"best epoch": count, "validation": points, "learned": points, "final": points, "change": change},
            **{"adapters used": text, "gates open": percent, "gates flipped": percent},
        },
        caption="Validation: the main metric on the validation split after the best epoch, if it chose that epoch; "
        "learned and final are on the test split. Scores on a few dozen examples are noisy: note the number of test "
        "examples. Adapters used: those that the task runs, as a labelled task may use the encoder only."
        + (
            " Gates: of these adapters; flipped are those that differ from where the task started." if run.gates else ""
        ),
    )
    for j, task in enumerate(run.tasks):
        end, begin, lost = ends.get(task, {}), begins.get(task, {}), drop(run, task)
        measured = j < run.learned
        epoch, kept = end.get("best_epoch"), run.kept_epoch(task)
        chosen = kept.get("validation") if kept.get("metric") == run.main.get(task) else None
        table.rows.append(
            [
                *(j + 1, task, run.kinds.get(task), run.main.get(task) or None),
                *(begin.get("train"), run.test_size.get(task), None if epoch is None else epoch + 1, chosen),
                run.own(j) if measured else None,
                run.matrix[run.learned - 1][j] if measured else None,
                None if lost is None else -lost,
                run.adapters_used(task),
                _mean(list(of_layers_run(end, "density").values())),
                _mean(list(of_layers_run(end, "flipped").values())),
            ]
        )
    return table.without_empty_columns()


def cost_table(run: Run, name: str) -> Table | None:
    """Return time, memory and bytes of each task; None if nothing was recorded."""
    ends = run.by_task("task_end")
    if not ends:
        return None
    evaluation: dict[Any, float] = {}
    for event in run.of("evaluated"):
        place = event.get("after")
        task = run.tasks[place] if isinstance(place, int) and 0 <= place < len(run.tasks) else place
        evaluation[task] = evaluation.get(task, 0.0) + float(event.get("seconds") or 0)
    rows = []
    for task, end in ends.items():
        kept = end.get("bytes") or {}
        rows.append(
            [
                task,
                end.get("seconds"),
                evaluation.get(task),
                end.get("peak_bytes"),
                kept.get("gates"),
                kept.get("head"),
                kept.get("total"),
            ]
        )
    if len(rows) > 1:
        rows.append(["sum, or the largest for memory", *(_total(rows, i, max if i == 3 else sum) for i in range(1, 7))])
    columns = {
        "task": text,
        "learning": duration,
        "evaluation": duration,
        "peak memory": size,
        run.kept: size,
        "head": size,
        "kept": size,
    }
    caption = (
        "Learning: training, validation and sealing. Evaluation: all learned tasks after this one. "
        "Kept: what stays on disk for the task."
    )
    return Table(name, columns, rows, caption).without_empty_columns()


def of_layers_run(end: dict[str, Any], key: str) -> dict[str, float]:
    """Return layer -> value for the layers that the task uses."""
    unused = set(end.get("unused") or ())
    return {layer: value for layer, value in (end.get(key) or {}).items() if layer not in unused}


def examples_table(run: Run, name: str) -> Table:
    """Return the first predictions on each task's test split next to the correct answers."""
    rows = [
        [task, number, _shown(reference), _shown(prediction), "yes" if prediction == reference else "no"]
        for task, pairs in run.examples.items()
        for number, (prediction, reference) in enumerate(pairs, start=1)
    ]
    columns = {"task": text, "test line": count, "right answer": text, "prediction": text, "equal": text}
    caption = (
        "The first lines of each task's test split, as they were last answered; predictions/ in the run folder has all."
    )
    return Table(name, dict(columns), rows, caption, wide=("right answer", "prediction"))


def _shown(answer: Any) -> str:
    """Format an answer as text, truncated if long: a label, tags joined by spaces, or generated text."""
    words = " ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
    return words if len(words) <= MOST_LETTERS else f"{words[: MOST_LETTERS - 1]}…"


def layers_table(per_task: dict[str, dict[str, float]], name: str) -> Table:
    """Return a value of every adapter layer (rows) for every task (columns)."""
    layers = list(dict.fromkeys(layer for values in per_task.values() for layer in values))
    rows = [[layer, *(values.get(layer) for values in per_task.values())] for layer in layers]
    return Table(name, {"layer": text, **dict.fromkeys(per_task, points)}, rows)


def overlap_table(overlap: Overlap, name: str) -> Table:
    """Return the Jaccard index of the gates of every two tasks."""
    rows = [[task, *map(float, overlap.jaccard[i])] for i, task in enumerate(overlap.tasks)]
    return Table(name, {"task": text, **dict.fromkeys(overlap.tasks, points)}, rows)


def _total(rows: list[list[Any]], column: int, how: Callable[[list[float]], float]) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return how(values) if values else None


def _family(task: str) -> str:
    return task.split("/", 1)[0]


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else None
