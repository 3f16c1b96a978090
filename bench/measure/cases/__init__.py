"""The operations that are measured, one group a file; `GROUPS` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from bench.measure.case import Case
from bench.measure.cases import (
    adamw,
    calls,
    dispatch,
    dispatch_adapter,
    epoch,
    gated_adapter,
    gated_linear,
    gates,
    importance,
    layers,
    packed_linear,
    scaling,
    start,
    step,
    tasks,
)
from bench.measure.cases.sizes import Sizes

GROUPS: dict[str, Callable[[Sizes], Iterable[Case]]] = {
    "gated_linear": gated_linear.cases,
    "layers": layers.cases,
    "adamw": adamw.cases,
    "gated_adapter": gated_adapter.cases,
    "packed_linear": packed_linear.cases,
    "gates": gates.cases,
    "importance": importance.cases,
    "calls": calls.cases,
    "scaling": scaling.cases,
    "step": step.cases,
    "epoch": epoch.cases,
    "tasks": tasks.cases,
    "start": start.cases,
    "dispatch": lambda sizes: chain(dispatch.cases(sizes), dispatch_adapter.cases(sizes)),
}
MODELS = frozenset({"step", "epoch", "tasks"})  # the groups that run whole models
STARTS = frozenset({"start"})  # those that start whole processes
