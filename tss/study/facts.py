"""Facts about how a study's numbers were produced: what ran, with which budget and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tss.report.header import soft_masks
from tss.report.run import Run
from tss.report.tables import Table, text
from tss.run.config import RunConfig, TaskSettings, settings_for
from tss.run.run_state import flattened
from tss.study.results import Study, cells_in

OWN = ("method", "method_options", "label", "tasks", "seed", "adapters.seed")
"""Keys that differ between runs of a study by design, or have a column of their own."""
SETTINGS_CAPTION = (
    "Options of each method, and the settings in which the methods differ. How these values were chosen is not part of "
    "a configuration and so not known here: say it where you publish the scores."
)


def facts_of(study: Study) -> list[tuple[str, str]]:
    """Return the facts at the top of the report."""
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
        ("backbone", _by_row({row: config.backbone for row, config in study.configs.items()})),
        ("tasks", f"{len(first.tasks)}, in {len(orders)} order{'s' * (len(orders) != 1)}"),
        *((f"order {name}", tasks) for name, tasks in orders.items()),
        ("seeds", ", ".join(map(str, seeds))),
        *budget(study),
        ("soft mask", soft_masks([run for _, _, run in cells])),
        *((key, " or ".join(values)) for key, values in kinds.items()),
    ]


def notes_of(study: Study) -> list[str]:
    """Return notes on failed, unfinished and damaged runs."""
    notes = [f"{name} failed: {error}" for name, error in study.failed.items()]
    if rest := [name for name in study.unfinished if name not in study.failed]:
        notes.append(f"{len(rest)} runs have not finished and are in none of the tables: {', '.join(rest)}.")
    return [*notes, *study.damage]


def budget(study: Study) -> list[tuple[str, str]]:
    """Return how much each task may be trained: equal for all methods, or what differs by method."""
    parts: dict[str, Callable[[TaskSettings], object]] = {
        "training examples": lambda of: of.limits.train or "all",
        "epochs": lambda of: of.epochs,
        "batch size": lambda of: of.batch_size * of.grad_accumulation,
        "early stopping": lambda of: f"{of.patience} epochs without a better one" if of.patience else "no",
    }
    values = {
        name: {
            row: _by_task({task: str(part(settings_for(config, task))) for task in config.tasks})
            for row, config in study.configs.items()
        }
        for name, part in parts.items()
    }
    found = [(name, _by_row(by_row)) for name, by_row in values.items()]
    if examples := _examples([run for _, _, run in cells_in(study)]):
        found[0] = ("training examples", examples)
    differ = [name for name, by_row in values.items() if len(set(by_row.values())) > 1]
    equal = f"differs by method: {', '.join(differ)}" if differ else "equal for all methods"
    return [("training budget", equal), *found]


def settings_table(study: Study) -> Table:
    """Return a table with one row per method: its options, and its settings that not all methods share."""
    plain = {row: flattened(config.resolved()) for row, config in study.configs.items()}
    keys = [
        key
        for key in dict.fromkeys(key for values in plain.values() for key in values)
        if not any(key == own or key.startswith(f"{own}.") for own in OWN)
        and len({repr(values.get(key)) for values in plain.values()}) > 1
    ]
    rows: list[list[Any]] = [
        [
            row,
            study.methods[row],
            _listed(config.method_options),
            _listed({key: plain[row][key] for key in keys if key in plain[row] and _used(key, config)}),
        ]
        for row, config in study.configs.items()
    ]
    wide = ("options", "settings that differ")
    columns = {"row": text, "method": text, **dict.fromkeys(wide, text)}
    return Table("settings", columns, rows, SETTINGS_CAPTION, wide=wide)


def _examples(runs: Sequence[Run]) -> str:
    """Return the training examples per task that all runs counted alike; empty if they differ or did not count."""
    first, *others = ({t: begin.get("train") for t, begin in run.by_task("task_begin").items()} for run in runs)
    sizes = [size for size in first.values() if size]
    if not sizes or any(other != first for other in others):
        return ""
    return f"{sizes[0]} per task" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)} per task"


def _by_task(values: Mapping[str, str]) -> str:
    """Return the most frequent value and the tasks, or whole families of them, that have others: `8 (sum: 4)`."""
    common = Counter(values.values()).most_common(1)[0][0]
    others: dict[str, list[str]] = {}
    for task, value in values.items():
        if value != common:
            family = task.split("/", 1)[0]
            alike = {other for name, other in values.items() if name.split("/", 1)[0] == family} == {value}
            others.setdefault(value, []).append(family if alike else task)
    if not others:
        return common
    listed = "; ".join(", ".join(dict.fromkeys(who)) + f": {value}" for value, who in others.items())
    return f"{common} ({listed})"


def _by_row(values: Mapping[str, str]) -> str:
    """Return a value that all rows share, or each value with its rows."""
    rows: dict[str, list[str]] = {}
    for row, value in values.items():
        rows.setdefault(value, []).append(row)
    if len(rows) == 1:
        return next(iter(rows))
    return " · ".join(f"{', '.join(who)}: {value}" for value, who in rows.items())


def _used(key: str, config: RunConfig) -> bool:
    """Return whether a method uses a setting: gated adapters have no `adapter_lr`, plain ones no `score_lr`."""
    return key.rsplit(".", 1)[-1] != ("adapter_lr" if config.adapters.gated else "score_lr")


def _listed(values: Mapping[str, Any]) -> str | None:
    return ", ".join(f"{key} = {value}" for key, value in values.items()) or None
