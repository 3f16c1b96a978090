"""Results of a study, read from its run folders only, and their statistics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tss.io import from_json
from tss.methods import METHODS
from tss.metrics import continual
from tss.report.reading import note_other_data, read_run
from tss.report.run import Run
from tss.run.config import RunConfig
from tss.study.folder import StudyFolder

BASELINES = ("one", "lora", "ncl")
"""Methods that every row is compared with, pair by pair."""
CONFIDENCE = 0.95
OVERALL = "all tasks"

Place = tuple[str, int]
"""Order and seed, which two compared runs have in common."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) of n values; the deviation of one value is None."""

    count: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of n paired differences and its confidence interval, which is None for a single pair."""

    count: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Cost:
    """Cost of a run.

    Attributes:
        seconds: time of training, validation and sealing of all tasks.
        peak_bytes: largest peak memory while a task was learned.
        adapters, head: trained parameters per task, mean over tasks.
        gate_bytes, head_bytes: bytes kept per task, mean over tasks: its gates or own weights, and its head.
        shared_bytes: bytes kept once that prediction needs: the weights that all tasks share.
        learning_bytes: bytes kept once that only further training may need: last scores, importance, a method's state.
        total_bytes: all bytes that prediction needs after the last task.
        switch_seconds: median time to switch tasks; None for runs of one task.
    """

    seconds: float | None
    peak_bytes: float | None
    adapters: float | None
    head: float | None
    gate_bytes: float | None
    head_bytes: float | None
    shared_bytes: float
    learning_bytes: float
    total_bytes: float | None
    switch_seconds: float | None


@dataclass
class Study:
    """The finished runs of a study by row and place, and what is missing.

    Attributes:
        rows: the methods with their settings, in the study's order.
        methods: row -> method.
        configs: row -> configuration of its first run.
        planned: row -> number of runs in the plan.
        runs: row -> place -> run.
        unfinished: names of cells that have not finished.
        failed: name -> last error of an unfinished cell that failed.
        damage: descriptions of what is not as the finished runs wrote it.
    """

    rows: list[str]
    methods: dict[str, str]
    configs: dict[str, RunConfig]
    planned: dict[str, int]
    runs: dict[str, dict[Place, Run]] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)

    def row_of(self, method: str) -> str | None:
        """Return the row that represents a method: the row of that name, otherwise its first row; None without one."""
        if self.methods.get(method) == method:
            return method
        return next((row for row in self.rows if self.methods[row] == method), None)

    def families(self) -> list[str]:
        """Return the families of all tasks, in the order of the first run."""
        tasks = [task for runs in self.runs.values() for run in runs.values() for task in run.tasks]
        return list(dict.fromkeys(map(family_of, tasks)))

    def one_place(self) -> tuple[Place, list[Run]]:
        """Return the first order and seed with a finished run of every row, or of the most rows, and these runs."""
        rows = [self.runs[row] for row in self.rows if row in self.runs]
        having = {place: [runs[place] for runs in rows if place in runs] for runs in rows for place in runs}
        return max(having.items(), key=lambda item: len(item[1]))  # the first of those with the most


def family_of(task: str) -> str:
    """Return the family of a task, distinct from the names of other columns of the tables."""
    name = task.split("/", 1)[0]
    return f"{name} (family)" if name in ("method", OVERALL) else name


def read_study(folder: Path | str) -> Study:
    """Read the plan and the finished runs of a study.

    Raises:
        StateError: the folder contains no study.
    """
    files = StudyFolder(folder)
    cells = files.cells()
    rows = list(dict.fromkeys(cell.row for cell in cells))
    configs = {cell.row: cell.config for cell in reversed(cells)}
    methods = {row: configs[row].method for row in rows}
    planned = {row: sum(cell.row == row for cell in cells) for row in rows}
    study = Study(rows, methods, {row: configs[row] for row in rows}, planned)
    for cell in cells:
        if files.finished(cell):
            run = read_run(files.run(cell))
            study.runs.setdefault(cell.row, {})[cell.order, cell.seed] = run
        else:
            study.unfinished.append(cell.name)
            if foreign := files.foreign(cell):
                study.damage.append(f"{files.run(cell)} is not a run of this study ({foreign[0]}); move it away.")
            if (error := files.failure(cell)) is not None:
                study.failed[cell.name] = error
    finished = [run for runs in study.runs.values() for run in runs.values()]
    note_other_data(finished)
    study.damage += [f"{run.folder}: {line}" for run in finished for line in run.damage]
    return study


def summaries(study: Study) -> dict[str, dict[Place, dict[str, Any]]]:
    """Return row -> place -> the run's continual metrics, including those against one task alone and all at once.

    Each run is compared with the runs of `one` and `mtl` of the same order and seed.
    """
    found: dict[str, dict[Place, dict[str, Any]]] = {}
    for row, runs in study.runs.items():
        for place, run in runs.items():
            one, mtl = _reference(study, "one", place, run), _reference(study, "mtl", place, run)
            families = [family_of(task) for task in run.tasks]
            values = continual.summary(
                run.square(), None if row == study.row_of("one") else one, mtl=None if run.joint else mtl,
                families=families,
            )  # fmt: skip
            if run.joint:  # joint training has no diagonal, only the cell of the last task
                values |= {"learning": None, "forgetting": None, "transfer": None}
            found.setdefault(row, {})[place] = values
    return found


def _reference(study: Study, method: str, place: Place, run: Run) -> list[float | None] | None:
    """Return the scores of a run's tasks with another method, same order and seed; None without such a run."""
    row = study.row_of(method)
    other = None if row is None else study.runs.get(row, {}).get(place)
    if other is None:
        return None
    last = other.matrix[-1] if other.joint else [other.own(j) for j in range(len(other.tasks))]
    scores = dict(zip(other.tasks, last, strict=True))
    return [scores.get(task) for task in run.tasks]


def averages(values: Mapping[str, Any]) -> dict[str, float]:
    """Return `OVERALL` and each family -> the final average, from one run's summary."""
    named = {OVERALL: values["average"]} | {name: means["average"] for name, means in values["families"].items()}
    return {name: value for name, value in named.items() if value is not None}


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the mean and standard deviation of the values that are not None; None if there are none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(len(there), statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None)


def paired(ours: Mapping[Place, float], theirs: Mapping[Place, float]) -> Difference | None:
    """Return ours minus theirs for places in both, with a two-sided t interval of the mean; None without a pair.

    Args:
        ours, theirs: place -> value.
    """
    differences = [ours[place] - theirs[place] for place in ours if place in theirs]
    count = len(differences)
    if not count:
        return None
    mean = statistics.fmean(differences)
    if count == 1:
        return Difference(1, mean, None, None)
    half = t_quantile((1 + CONFIDENCE) / 2, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return Difference(count, mean, mean - half, mean + half)


def t_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution with `freedom` degrees of freedom."""
    from scipy.stats import t  # slow to import

    return float(t.ppf(probability, freedom))


def cost_of(run: Run) -> Cost:
    """Return the cost of a finished run, from its events and files."""
    ends, begins = list(run.by_task("task_end").values()), list(run.by_task("task_begin").values())
    kept = [end.get("bytes") or {} for end in ends]
    trained = [begin.get("trained") or {} for begin in begins]
    once = tensor_bytes(run.folder / "adapters")
    # a method whose sealed tasks cannot change stores everything that a task needs with the task
    never_forgets = run.method in METHODS and METHODS[run.method].never_forgets
    shared = 0 if never_forgets else sum(size for name, size in once.items() if name.startswith("shared."))
    own = _numbers(kept, "total")
    return Cost(
        seconds=_sum(_numbers(ends, "seconds")),
        peak_bytes=max(_numbers(ends, "peak_bytes"), default=None),
        adapters=_mean(_numbers(trained, "adapters")),
        head=_mean(_numbers(trained, "head")),
        gate_bytes=_mean(_numbers(kept, "gates")),
        head_bytes=_mean(_numbers(kept, "head")),
        shared_bytes=shared,
        learning_bytes=sum(once.values()) - shared,
        total_bytes=sum(own) + shared if own else None,
        switch_seconds=next(iter(_numbers(run.of("run_end"), "switch_seconds")), None),
    )


def tensor_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of each tensor that a run's tasks share or pass on, from the file's header; may be empty."""
    sizes: dict[str, int] = {}
    for path in folder.glob("shared-*.safetensors"):  # the frozen weights next to it follow from the seed
        with path.open("rb") as file:
            header = from_json(file.read(int.from_bytes(file.read(8), "little")))
        sizes |= {
            name: about["data_offsets"][1] - about["data_offsets"][0]
            for name, about in header.items()
            if name != "__metadata__"
        }
    return sizes


def _numbers(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [record[key] for record in records if record.get(key) is not None]


def _sum(values: list[float]) -> float | None:
    return sum(values) if values else None


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def cells_in(study: Study) -> list[tuple[str, Place, Run]]:
    """Return every finished run with its row and place, with rows in the study's order."""
    return [(row, place, run) for row in study.rows for place, run in study.runs.get(row, {}).items()]
