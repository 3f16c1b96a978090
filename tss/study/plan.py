"""Study plan: the study's file, and the run configuration of each cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from tss.errors import ConfigError
from tss.io import safe_name
from tss.methods import METHODS
from tss.presets import study_file, study_names
from tss.run.config import RunConfig, combine, load_config
from tss.run.config_errors import explain, nearest
from tss.run.config_files import (
    Layer,
    apply_override,
    apply_overrides,
    lay_over,
    read_source,
    read_text,
    read_yaml,
    shown,
)
from tss.run.resolve import tasks_to_run, with_task_names
from tss.seeding import stream

MAX_CELLS = 10_000
PER_STUDY = ("seed", "tasks", "shuffle", "label")
"""Keys of a run that the study sets in every cell."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Tasks = Annotated[list[str], Field(min_length=1)]


class StudyConfig(BaseModel):
    """Content of a study's file. Everything in it is a run configuration or a choice among run configurations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    """Preset or YAML file of a run that every cell starts from; its section `methods` applies to each method."""
    changes: dict[str, Any] = {}
    """Run configuration keys that differ from the base in every cell."""
    methods: dict[str, dict[str, Any]]
    """Row name -> run configuration keys that differ for it; `method` defaults to the row name if that is a method."""
    orders: PositiveInt | dict[str, Tasks] = 1
    """Name -> the tasks in order; or the number of orders: the base's own order, then shuffles of it."""
    seeds: PositiveInt | list[Seed] = 1
    """Seeds; or the number of seeds: the base's own seed and those that follow it."""

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: object) -> object:
        """Convert a list of names, and names without changes, to mappings."""
        if isinstance(value, list):
            if odd := [name for name in value if not isinstance(name, str)]:
                raise ValueError(f"a list holds names of methods, got {odd[0]!r}; with changes: NAME: {{KEY: VALUE}}")
            value = {name: {} for name in value}
        if isinstance(value, Mapping):
            value = {name: {} if changes is None else changes for name, changes in value.items()}
            if not value:
                raise ValueError("at least one method is needed")
        return value

    @field_validator("seeds", "orders", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError(f"expected a number or names, got {value}, which is also what YAML makes of yes or no")
        if isinstance(value, int) and value > MAX_CELLS:
            raise ValueError(f"{value} is more than {MAX_CELLS:,}")
        return value

    @field_validator("seeds", "orders")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if not value:
            raise ValueError("at least one is needed")
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError(f"each once, got {value}")
        return value


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: name of its folder.
        row, order, seed: its position in the study; `row` is a method with its settings.
        config: configuration of the run.
    """

    name: str
    row: str
    order: str
    seed: int
    config: RunConfig

    def plain(self) -> dict[str, Any]:
        """Return JSON-serializable values from which `cell_from` creates an equal cell."""
        return {**vars(self), "config": self.config.resolved()}


def cell_from(values: Mapping[str, Any]) -> Cell:
    """Create a cell from the result of `Cell.plain`."""
    return Cell(**{**values, "config": RunConfig.model_validate(values["config"])})


def load_study(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    seeds: int | Sequence[int] | None = None,
    data: str | None = None,
) -> StudyConfig:
    """Read a study's file.

    Args:
        source: path of the file, or the name of a study included in the package.
        overrides: `a.b=value` changes to the run configuration of every cell.
        seeds: replaces the file's seeds.
        data: replaces the base's data.

    Raises:
        ConfigError: the file cannot be read or is invalid; one line per problem.
    """
    path, origin = Path(source), str(source)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        names = study_names()
        if str(source) not in names:
            raise ConfigError(f"no study and no file {str(source)!r}; {nearest(str(source), names, 'studies')}")
        path = study_file(str(source))
        origin = f"study {source}"
    values = read_yaml(read_text(path, "study"), origin)
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected a mapping with base, methods, orders and seeds")
    if isinstance(base := values.get("base"), str) and base.endswith((".yaml", ".yml")):
        values["base"] = str(path.parent / base)  # relative to the folder of the study's file
    own = values.get("changes") or {}
    if not isinstance(own, dict):
        raise ConfigError(f"{origin}: changes: expected keys of a run's configuration with their values, got {own!r}")
    changes = apply_overrides(own, overrides)
    if data is not None:
        changes["data"] = data if data == "generated" or data.startswith("hub:") else str(Path(data).absolute())
    values |= {"changes": changes} | ({} if seeds is None else {"seeds": seeds})
    try:
        study = StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {line}" for line in explain(error, StudyConfig))) from error
    if overrides:
        _check_overrides(study, own, overrides)
    return study


def cells_of(study: StudyConfig) -> list[Cell]:
    """Return every run of a study, with seeds as the outermost loop, so that a partial study has whole comparisons.

    Raises:
        ConfigError: invalid settings, tasks that the data lacks, too many runs, or two runs with the same folder name.
        DataError: the data does not exist.
    """
    base, _ = read_source(study.base, None)
    configs = {row: _row(study, base, row) for row in study.methods}
    first = next(iter(configs.values()))
    seeds = study.seeds if isinstance(study.seeds, list) else [first.seed + i for i in range(study.seeds)]
    if max(seeds) >= 2**63:
        raise ConfigError(f"seeds: {max(seeds)} is more than {2**63 - 1}, the largest seed; use smaller ones")
    orders = _orders(study, first)
    configs = {row: with_task_names(config) for row, config in configs.items()}
    if len(configs) * len(orders) * len(seeds) > MAX_CELLS:
        raise ConfigError(f"a study of {len(configs)} x {len(orders)} x {len(seeds)} runs is more than {MAX_CELLS:,}")
    cells = [
        Cell(f"{safe_name(row)}-{safe_name(order)}-{seed}", row, order, seed, _cell(config, row, tasks, seed))
        for seed in seeds
        for order, tasks in orders.items()
        for row, config in configs.items()
    ]
    names = [cell.name for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two runs of the study would have the folder {twice}: give rows and orders simpler names")
    return cells


def _check_overrides(study: StudyConfig, changes: dict[str, Any], overrides: Sequence[str]) -> None:
    """Raise ConfigError if an override makes rows invalid; the message names the override, and the rows if not all.

    Args:
        study: the study with all overrides.
        changes: the changes of the study's file, without them.
        overrides: the overrides in order.
    """
    base, _ = read_source(study.base, None)

    def problems(changes: dict[str, Any]) -> dict[str, list[str]]:
        """Return problem -> the rows that have it."""
        found: dict[str, list[str]] = {}
        for row in study.methods:
            try:
                _config(study.model_copy(update={"changes": changes}), base, row)
            except ConfigError as error:
                for line in str(error).splitlines():
                    found.setdefault(line, []).append(row)
        return found

    before = problems(changes)
    new = {line: rows for line, rows in problems(study.changes).items() if line not in before}
    for text in overrides if new else ():
        changes = apply_override(changes, text)
        present = problems(changes)
        lines = [
            f"override {shown(text)}: {line.removeprefix('configuration: ')}"
            + ("" if len(rows) == len(study.methods) else f" (methods: {', '.join(rows)})")
            for line, rows in new.items()
            if line in present
        ]
        if lines:
            raise ConfigError("\n".join(lines))


def _row(study: StudyConfig, base: Sequence[Layer], row: str) -> RunConfig:
    """Return the configuration of a row as `_config`; messages begin with the row."""
    try:
        return _config(study, base, row)
    except ConfigError as error:
        raise ConfigError("\n".join(f"methods.{row}: {line}" for line in str(error).splitlines())) from error


def _config(study: StudyConfig, base: Sequence[Layer], row: str) -> RunConfig:
    """Return the configuration of a row, with the base's task order and seed."""
    changes = study.methods[row]
    if fixed := [key for key in PER_STUDY if key in changes]:
        raise ConfigError(
            f"{fixed[0]} is the same in all rows, which are compared by order and seed: set it under changes, orders "
            "or seeds"
        )
    method = changes.get("method", row)
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"no method {method!r}: name one by its key method; {', '.join(METHODS)}")
    changes = {**changes, "method": method}
    values = combine(base, {**study.changes, **changes})
    return load_config(lay_over(lay_over(values, study.changes), changes))


def _orders(study: StudyConfig, config: RunConfig) -> dict[str, list[str]]:
    """Return name -> order, with the tasks' names in the data."""
    given = study.orders
    if isinstance(given, int):
        own = tasks_to_run(config)
        if given > (most := math.factorial(min(len(own), 12))):
            raise ConfigError(f"orders: {given} asked for, but {len(own)} tasks have only {most}")
        return {str(number): tasks for number, tasks in enumerate(_shuffles(own, given), start=1)}
    found = {
        name: tasks_to_run(config.model_copy(update={"tasks": tasks, "shuffle": False}))
        for name, tasks in given.items()
    }
    sets = {name: frozenset(tasks) for name, tasks in found.items()}
    first = next(iter(found))
    if other := next((name for name in sets if sets[name] != sets[first]), None):
        only = sorted(sets[first] ^ sets[other])
        raise ConfigError(
            f"orders: {first} and {other} are not orders of the same tasks; only one has {', '.join(only)}"
        )
    if same := [(a, b) for a, b in itertools.combinations(found, 2) if found[a] == found[b]]:
        raise ConfigError(f"orders: {' and '.join(same[0])} are the same, and would count twice; leave one out")
    return found


def _shuffles(tasks: Sequence[str], count: int) -> list[list[str]]:
    """Return `count` distinct orders: the given one, then shuffles."""
    orders, number = [list(tasks)], 0
    while len(orders) < count:
        number += 1
        order = sorted(tasks)
        stream("study", number).shuffle(order)
        if order not in orders:
            orders.append(order)
    return orders


def _cell(config: RunConfig, row: str, tasks: Sequence[str], seed: int) -> RunConfig:
    values = config.resolved()
    seeded: dict[str, Any] = {"seed": seed}
    if config.adapters.seed == config.seed:  # unless it is set separately
        seeded["adapters"] = {**values["adapters"], "seed": seed}
    return RunConfig.model_validate({**values, **seeded, "tasks": list(tasks), "shuffle": False, "label": row})
