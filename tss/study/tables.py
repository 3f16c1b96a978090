"""Tables of a study: formatted for display, and plain numbers for CSV."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from tss.report.names import duration, number, short_duration, size
from tss.report.run import Run
from tss.report.tables import Table, count, text
from tss.study.results import (
    BASELINES,
    CONFIDENCE,
    OVERALL,
    Cost,
    Difference,
    Place,
    Spread,
    Study,
    averages,
    cells_in,
    cost_of,
    paired,
    spread,
)

Summaries = dict[str, dict[Place, dict[str, Any]]]
MEASURES = {
    "average": "at the end",
    "learning": "when learned",
    "forgetting": "forgetting",
    "transfer": "transfer",
    "gap_one": "above one",
    "gap_mtl": "above mtl",
}
COSTS = {
    "seconds": "learning",
    "peak_bytes": "peak memory",
    "adapters": "trained parameters",
    "head": "trained in the head",
    "gate_bytes": "kept per task: gates or weights",
    "head_bytes": "kept per task: head",
    "shared_bytes": "kept once",
    "total_bytes": "total for prediction",
    "learning_bytes": "only for training",
    "switch_seconds": "switch of tasks",
}


def shown_spread(value: Spread | None) -> str:
    """Format a spread, for example "61.2 ± 1.4"; without the deviation for a single value."""
    if value is None:
        return "–"
    mean = number(value.mean, 1)
    return mean if value.deviation is None else f"{mean} ± {number(value.deviation, 1)}"


def shown_difference(value: Difference | None) -> str:
    """Format a difference, for example "+1.2 [−0.3, +2.7] (6)": mean, interval and number of pairs."""
    if value is None:
        return "–"
    mean = number(value.mean, 1, signed=True)
    if value.low is None:
        return f"{mean} ({value.count})"
    low, high = number(value.low, 1, signed=True), number(value.high, 1, signed=True)
    return f"{mean} [{low}, {high}] ({value.count})"


def scores_table(study: Study, found: Summaries) -> Table:
    """Return a table with one row per method: continual metrics, mean ± deviation over orders and seeds."""
    measures = [
        key for key in MEASURES if any(v.get(key) is not None for cells in found.values() for v in cells.values())
    ]
    columns = {"method": text, "runs": text, **{MEASURES[key]: shown_spread for key in measures}}
    rows: list[list[Any]] = []
    for row in study.rows:
        cells = found.get(row, {}).values()
        runs = f"{len(cells)}/{study.planned[row]}" if len(cells) != study.planned[row] else len(cells)
        rows.append([row, runs, *(spread(values.get(key) for values in cells) for key in measures)])
    caption = (
        "Points of the tasks' main metrics, 0 to 100, mean ± standard deviation (n − 1) over orders and seeds. At the "
        "end: all tasks after the last one. When learned: each task just after its own training. Forgetting: points "
        "lost between the two, over all tasks but the last. Transfer: each task but the first when learned, minus its "
        "score with `one` in the same order with the same seed. Above one, above mtl: at the end, minus the mean of "
        "`one` or `mtl`. F1, ROUGE and BLEU have different scales: see also the means over families."
    )
    return Table("scores", columns, rows, caption)


def families_table(study: Study, found: Summaries) -> Table:
    """Return a table with one row per method: final scores by family, mean ± deviation over orders and seeds."""
    over = [*study.families(), OVERALL]
    rows: list[list[Any]] = []
    for row in study.rows:
        cells = [averages(values) for values in found.get(row, {}).values()]
        rows.append([row, *(spread(values.get(name) for values in cells) for name in over)])
    caption = "Mean over the tasks of a family after the last task of the sequence; mean ± standard deviation (n − 1)."
    return Table("families", {"method": text, **dict.fromkeys(over, shown_spread)}, rows, caption)


def validation_table(study: Study) -> Table | None:
    """Return a table with one row per method: validation against test scores of just learned tasks; None without any.

    Only tasks whose best epoch was chosen by the main metric have a validation score that a test score compares with.
    """
    rows: list[list[Any]] = []
    for row in study.rows:
        pairs = [validated(run) for run in study.runs.get(row, {}).values()]
        means = [[_mean_at(of_run, side) for of_run in pairs if of_run] for side in (0, 1)]
        gaps = [validation - test for validation, test in zip(*means, strict=True)]
        rows.append([row, sum(map(len, pairs)) or None, spread(means[0]), spread(means[1]), spread(gaps)])
    if not any(row[1] for row in rows):
        return None
    caption = (
        "Main metric on the validation split after the best epoch, which that split chose, and on the test split just "
        "after learning (for joint training, at the end): mean over tasks, then mean ± standard deviation (n − 1) over "
        "runs. Tasks whose epoch was chosen by the loss, such as generation by default, are left out. A validation "
        "score far above the test score means that the choice of the epoch fits the validation examples."
    )
    columns = dict.fromkeys(["validation", "test", "difference"], shown_spread)
    return Table("validation", {"method": text, "tasks of all runs": count, **columns}, rows, caption)


def validated(run: Run) -> list[tuple[float, float]]:
    """Return (validation, test) of each task of a run whose best epoch was chosen by its main metric."""
    pairs = []
    for place, task in enumerate(run.tasks):
        kept = run.kept_epoch(task)
        test = run.matrix[-1][place] if run.joint else run.own(place)
        if kept.get("metric") == run.main.get(task) and kept.get("validation") is not None and test is not None:
            pairs.append((float(kept["validation"]), test))
    return pairs


def _mean_at(pairs: Sequence[tuple[float, float]], side: int) -> float:
    return statistics.fmean(pair[side] for pair in pairs)


def differences(study: Study, found: Summaries, over: str) -> dict[str, dict[str, Difference | None]]:
    """Return row -> baseline -> the paired difference of final scores, over all tasks or a family."""
    values = {
        row: {place: scores[over] for place, cell in cells.items() if over in (scores := averages(cell))}
        for row, cells in found.items()
    }
    baselines = {method: row for method in BASELINES if (row := study.row_of(method)) in found}
    return {
        row: {
            method: None if other == row else paired(values.get(row, {}), values.get(other or "", {}))
            for method, other in baselines.items()
        }
        for row in study.rows
    }


def paired_table(study: Study, found: Summaries) -> Table | None:
    """Return a table with one row per method: paired differences from each baseline, over all tasks; or None."""
    by_row = differences(study, found, OVERALL)
    baselines = list(next(iter(by_row.values()), {}))
    if not baselines:
        return None
    columns = {"method": text, **{f"minus {name}": shown_difference for name in baselines}}
    rows: list[list[Any]] = [[row, *values.values()] for row, values in by_row.items()]
    caption = (
        f"Score at the end minus that of the other method in the same order with the same seed: mean, {CONFIDENCE:.0%} "
        "t interval of the mean, and in parentheses the number of pairs. An interval that contains 0 does not show a "
        "difference. Pairs that share an order or a seed are not independent, so intervals from few seeds are somewhat "
        "too narrow; and among many comparisons, some exclude 0 by chance. By family: tables/paired.csv."
    )
    return Table("paired", columns, rows, caption)


def efficiency_table(study: Study) -> Table:
    """Return a table with one row per method: its costs, mean over its runs."""
    costs = {row: [cost_of(run) for run in study.runs.get(row, {}).values()] for row in study.rows}
    formats: list[Callable[[Any], str]] = [duration, size, count, count, *[size] * 5, short_duration]
    columns = {"method": text, **dict(zip(COSTS.values(), formats, strict=True))}
    rows = [[row, *(mean_of(found, key) for key in COSTS)] for row, found in costs.items()]
    caption = (
        "Means over the runs. Learning: training, validation and sealing of all tasks, in one process that shares the "
        "machine with the study's other workers. Peak memory: resident memory of the process (CUDA: allocated memory) "
        "during learning, including backbone and libraries. Trained parameters, also in the head: of one task. Kept "
        "per task: mean over tasks; some tasks have no head. Kept once: weights that all tasks share. Total for "
        "prediction: these and what is kept for every task. Only for training: what is kept for later tasks, such as "
        "last scores and importance, or a method's own state. Switch of tasks: median time from selecting another task "
        "to having the gates or weights and the head that a call runs, without the call."
    )
    return Table("efficiency", columns, rows, caption)


def mean_of(costs: Sequence[Cost], key: str) -> float | None:
    """Return the mean of one cost over runs."""
    found = spread(getattr(cost, key) for cost in costs)
    return None if found is None else found.mean


def raw_tables(study: Study, found: Summaries) -> list[Table]:
    """Return tables of plain numbers, for CSV only."""
    over = [OVERALL, *study.families()]
    scores = Table("scores", dict.fromkeys(["method", "measure", "over", "n", "mean", "deviation"], text))
    pairs = Table("paired", dict.fromkeys(["method", "minus", "over", "n", "difference", "low", "high"], text))
    runs = Table("runs", dict.fromkeys(["method", "order", "seed", *MEASURES, *COSTS], text))
    tasks = Table(
        "tasks", dict.fromkeys(["method", "order", "seed", "place", "task", "metric", "learned", "final"], text)
    )
    for row in study.rows:
        cells = list(found.get(row, {}).values())
        measures = [(key, OVERALL, [values.get(key) for values in cells]) for key in MEASURES]
        measures += [("average", name, [averages(values).get(name) for values in cells]) for name in over[1:]]
        for key, name, values in measures:
            if (value := spread(values)) is not None:
                scores.rows.append([row, key, name, value.count, value.mean, value.deviation])
    for name in over:
        for row, by_baseline in differences(study, found, name).items():
            for baseline, value in by_baseline.items():
                if value is not None:
                    pairs.rows.append([row, baseline, name, value.count, value.mean, value.low, value.high])
    for row, place, run in cells_in(study):
        cost, values = cost_of(run), found[row][place]
        runs.rows.append([row, *place, *(values.get(key) for key in MEASURES), *(getattr(cost, key) for key in COSTS)])
        for j, task in enumerate(run.tasks):
            tasks.rows.append([row, *place, j + 1, task, run.main.get(task), run.own(j), run.matrix[-1][j]])
    costs = efficiency_table(study)
    plain = Table("efficiency", dict.fromkeys(["method", *COSTS], text), costs.rows)
    return [scores, pairs, plain, runs, tasks]
