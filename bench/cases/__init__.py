"""The measured operations, one group per file; `GROUPS` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench.cases import (
    adamw,
    calls,
    gated_adapter,
    gated_linear,
    gates,
    importance,
    importance_pass,
    layers,
    multi_task,
    packed_linear,
    scaling,
    shapes,
    start,
    step,
    tasks,
)
from bench.cases.sizes import Sizes
from bench.core.case import Case

GROUPS: dict[str, Callable[[Sizes], Iterable[Case]]] = {
    "shapes": shapes.cases,
    "gated_linear": gated_linear.cases,
    "layers": layers.cases,
    "adamw": adamw.cases,
    "gated_adapter": gated_adapter.cases,
    "packed_linear": packed_linear.cases,
    "multi_task": multi_task.cases,
    "gates": gates.cases,
    "importance": importance.cases,
    "calls": calls.cases,
    "scaling": scaling.cases,
    "step": step.cases,
    "importance_pass": importance_pass.cases,
    "tasks": tasks.cases,
    "start": start.cases,
}
WHOLE_MODELS = frozenset({"step", "importance_pass", "tasks"})  # groups that run whole models
PROCESSES = frozenset({"start"})  # groups that start whole processes
