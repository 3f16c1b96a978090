"""Resolution of a configuration: tasks by their names in the data, device, precision, settings by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from tss.data import AUTHOR_ORDERS, Order, TaskData, list_tasks, load_task, resolve_order
from tss.data.catalog import catalog
from tss.data.orders import candidates
from tss.errors import ConfigError
from tss.run.backbone import resolve_device, resolve_precision
from tss.run.config import RunConfig, TaskSettings, settings_for
from tss.run.config_errors import nearest
from tss.run.examples import with_settings
from tss.run.processes import current, local_rank
from tss.run.runtime import Runtime

NAMES_SHOWN = 12


def sequence(config: RunConfig) -> Order:
    """Return the tasks of the sequence by their names in the data, and the names that the data lacks.

    Raises:
        ConfigError: a name stands for several tasks, a task is repeated, or several names are given for one hub data
            set.
        DataError: there is no such data.
    """
    hub = config.data.startswith("hub:")
    if hub and config.sources:
        raise ConfigError(f"sources: {config.data} is one data set with one task; write it into `sources` too")
    if hub and len(config.tasks) != 1:
        given = f"{len(config.tasks)} names were given, which would all train on it" if config.tasks else "none is"
        raise ConfigError(
            f"tasks: {config.data} is one data set with one task, but {given}; name one, for example "
            "tasks=[asc/x], or give each task its own: sources={asc/x: hub:NAME, ner/y: hub:OTHER}"
        )
    if config.fields and not hub:
        raise ConfigError(f"fields: a field map is for hub data sets, and {config.data} is not one; leave it out")
    available = config.tasks if hub else available_tasks(config)
    asked = config.tasks or list(config.sources) or available
    return resolve_order(asked, available, config.seed if config.shuffle else None)


def available_tasks(config: RunConfig) -> list[str]:
    """Return the tasks with a source of their own, then those of the data; not for a hub data set.

    Raises:
        DataError: there is no such data.
    """
    return list(dict.fromkeys((*config.sources, *list_tasks(config.data))))


def with_task_names(config: RunConfig) -> RunConfig:
    """Return the configuration with `overrides` under the names that the tasks have in the data.

    Raises:
        ConfigError: a key of `overrides` is no task of the data or of the sequence, or two keys are the same task; or a
            key of `families` is no family.
        DataError: there is no such data.
    """
    there = config.tasks if config.data.startswith("hub:") else available_tasks(config)
    known = list(dict.fromkeys((*there, *config.tasks)))
    families = dict.fromkeys((*AUTHOR_ORDERS, *(task.split("/", 1)[0] for task in known)))
    if unknown := [name for name in config.families if name not in families]:
        near = nearest(unknown[0], list(families), "families")
        raise ConfigError(f"families.{unknown[0]}: no task has this family; {near}")
    order = resolve_order(list(config.overrides), there)
    asked = {full for task in config.tasks for full in (task, *candidates(task))}  # also those that are skipped
    if unknown := [name for name in order.missing if asked.isdisjoint((name, *candidates(name)))]:
        near = nearest(unknown[0], known, "tasks", cutoff=0.6)
        raise ConfigError(f"overrides.{unknown[0]}: the data has no such task; {near}")
    found = [name for name in config.overrides if name not in order.missing]
    overrides = {task: config.overrides[name] for task, name in zip(order.tasks, found, strict=True)}
    return config.model_copy(update={"overrides": overrides})


def tasks_to_run(config: RunConfig) -> list[str]:
    """Return the tasks of a run in their order.

    Raises:
        ConfigError: the data lacks some, and `missing_tasks` is not "skip", or it lacks all.
        DataError: there is no such data.
    """
    order = sequence(config)
    if not order.tasks or (order.missing and config.missing_tasks == "error"):
        named = order.tasks or config.data != "generated"
        remedy = ("; correct the names or the data folder" if named else "") + (
            ", or skip what is missing with missing_tasks=skip" if order.tasks else ""
        )
        raise ConfigError(missing_message(config, order) + remedy)
    return order.tasks


def missing_message(config: RunConfig, order: Order) -> str:
    """Return a message that names the tasks of a sequence that the data lacks, and what there is instead."""
    known = order.tasks if config.data.startswith("hub:") else available_tasks(config)
    near = {name: nearest(name, known, "tasks", cutoff=0.7) for name in order.missing}
    near = {name: hint for name, hint in near.items() if hint.startswith("did")}
    many = f"{len(order.missing)} of {len(order.missing) + len(order.tasks)} tasks of the sequence"
    if config.data == "generated" and not order.tasks and len(near) < len(order.missing):
        some = _some(order.missing[:3], len(order.missing))
        offered = sum(name in catalog() for name in order.missing)
        of_them = "them" if offered == len(order.missing) else f"{offered} of them"
        hint = f"; `tss data get --to DIR` creates {of_them}" if offered else ""
        return (
            f"data: {many} are not generated ones ({some}): name the data folder that has them, with --data DIR{hint}"
        )
    hints = [f"{name} ({near[name]})" if name in near else name for name in order.missing[:NAMES_SHOWN]]
    there = _some(known[:NAMES_SHOWN], len(known)) if known else "no task (<family>/<task>/train.jsonl)"
    return f"tasks: {many} are not in {config.data}: {_some(hints, len(order.missing))}. It has: {there}"


def resolve(config: RunConfig) -> tuple[RunConfig, Runtime]:
    """Return the configuration that will be saved, and the runtime that it runs on.

    Raises:
        ConfigError, DataError: the configuration cannot be run here.
    """
    device = resolve_device(config.device)
    processes = current(in_step=config.shard_backbone)
    if processes.count > 1 and device.type == "cuda":
        device = torch.device("cuda", local_rank())
    if config.shard_backbone and processes.count == 1:
        raise ConfigError(
            "shard_backbone: one process has no other to share the backbone with: start the run with torchrun or "
            "accelerate launch, or leave this out"
        )
    runtime = Runtime(device, resolve_precision(config.precision, device), processes)
    tasks = tasks_to_run(config)
    config = with_task_names(config)
    changes = {"precision": runtime.precision, "tasks": tasks, "shuffle": False}
    return config.model_copy(update=changes), runtime


def load_tasks(config: RunConfig) -> tuple[list[TaskData], dict[str, TaskSettings]]:
    """Read and check all data, and the settings of each task, before anything is trained.

    The tasks' kinds get the run's metric and decoding.
    """
    tasks, settings = [], {}
    for name in config.tasks:
        settings[name] = settings_for(config, name)
        limits = settings[name].limits.model_dump()
        source = config.source_of(name)
        task = load_task(source.source, name, seed=config.seed, limits=limits, fields=source.fields)
        tasks.append(dataclasses.replace(task, kind=with_settings(task.kind, settings[name], name)))
    return tasks, settings


def _some(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")
