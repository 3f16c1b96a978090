"""Products of rows of many tasks: 32 entries of 1 to 32 tasks in one batch, against one call for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

import tss_kernels
from bench.cases import rivals
from bench.cases.sizes import Draw, Sizes
from bench.core.case import Case, Cost, Inputs, Outputs, Precision, Role, Variant, by_backends

Tensor = torch.Tensor

ENTRIES, TASKS = 32, (1, 2, 8, 32)
LENGTHS = (1, 64)  # rows per entry: a step of generation, and a sequence
SIDES = {"linear": ("down",), "adapter": ("down", "up")}


def _draw(sizes: Sizes, op: str, shape: dict[str, int], seed: int) -> Inputs:
    draw, d, units = Draw(sizes, seed), shape["in"], shape["out"]
    drawn: Inputs = {"x": draw.normal(ENTRIES, shape["length"], d)}
    for side, (out, columns) in {"down": (units, d), "up": (d, units)}.items():
        if side in SIDES[op]:
            drawn[f"{side}_weight"] = draw.normal(out, columns, scale=columns**-0.5)
            gates = [tss_kernels.pack_gates(draw.normal(out, columns, dtype=torch.float32)) for _ in range(ENTRIES)]
            drawn[f"{side}_bank"] = torch.stack(gates)
    drawn["task_ids"] = torch.arange(ENTRIES, device=sizes.device) % shape["tasks"]
    return drawn


def _formula(op: str, t: Inputs, precision: Precision) -> Outputs:
    wide = precision.dtype

    def weight(side: str, task: int) -> Tensor:
        own = t[f"{side}_weight"].to(wide)
        return own * rivals.unpack(t[f"{side}_bank"][task], own.shape[1], wide)

    rows = []
    for x, task in zip(t["x"].to(wide), t["task_ids"].tolist(), strict=True):
        y = linear(x, weight("down", task))
        rows.append(y if op == "linear" else x + linear(torch.relu(y), weight("up", task)))
    return {"y": torch.stack(rows)}


def _mixed(op: str, t: Inputs, x: Tensor, task_ids: Tensor) -> Tensor:
    if op == "linear":
        return tss_kernels.multi_task_linear(x, t["down_weight"], t["down_bank"], task_ids)
    maps = t["down_weight"], t["down_bank"], t["up_weight"], t["up_bank"]
    return tss_kernels.multi_task_adapter(x, *maps, task_ids)


def _single(op: str, t: Inputs, x: Tensor, task: int) -> Tensor:
    if op == "linear":
        return tss_kernels.packed_linear(x, t["down_weight"], t["down_bank"][task])
    down, up = ((t[f"{side}_weight"], t[f"{side}_bank"][task]) for side in SIDES[op])
    return tss_kernels.packed_adapter(x, *down, *up)


def _bind_ours(op: str, t: Inputs) -> Callable[[], Outputs]:
    def call() -> Outputs:
        with torch.no_grad():
            return {"y": _mixed(op, t, t["x"], t["task_ids"])}

    return call


def _bind_loop(op: str, t: Inputs) -> Callable[[], Outputs]:
    """Bind one call per task that occurs, on its entries, which are put back in order; the grouping is not timed."""
    ids = t["task_ids"]
    groups = [(task, (ids == task).nonzero().flatten()) for task in ids.unique().tolist()]
    back = torch.cat([entries for _, entries in groups]).argsort()

    def call() -> Outputs:
        with torch.no_grad():
            return {"y": torch.cat([_single(op, t, t["x"][entries], task) for task, entries in groups])[back]}

    return call


def _bind_one(op: str, t: Inputs) -> Callable[[], Outputs]:
    def call() -> Outputs:
        with torch.no_grad():
            return {"y": _single(op, t, t["x"], 0)}

    return call


def _variants(sizes: Sizes, op: str, told: tss_kernels.Explanation) -> tuple[Variant, ...]:
    runs: list[tuple[str, Role, Callable[..., Any]]] = [
        ("tss", "ours", _bind_ours),
        ("one call per task", "rival", _bind_loop),
        ("one task", "floor", _bind_one),
    ]
    made = [
        Variant(name, role, partial(bind, op), differs="all rows are of one task, by the single-task operation")
        for name, role, bind in runs
    ]
    return (*by_backends(told, sizes.device, made[0]), *made[1:])


def _told(sizes: Sizes, op: str, shape: dict[str, int]) -> tss_kernels.Explanation:
    d, units, tasks = shape["in"], shape["out"], shape["tasks"]
    x, ids = sizes.like(ENTRIES, shape["length"], d), sizes.like(ENTRIES, dtype=torch.int64)
    down = sizes.like(units, d), sizes.like(tasks, units, (d + 7) // 8, dtype=torch.uint8)
    up = sizes.like(d, units), sizes.like(tasks, d, (units + 7) // 8, dtype=torch.uint8)
    return tss_kernels.explain(f"multi_task_{op}", x, *down, *(() if op == "linear" else up), ids)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield every adapter, and its down map alone, at every number of tasks."""
    lengths, counts = ((2,), (3,)) if sizes.tiny else (LENGTHS, TASKS)
    for op in SIDES:
        for d, units in sizes.adapters:
            for length in lengths:
                for tasks in counts:
                    shape = {"entries": ENTRIES, "length": length, "in": d, "out": units, "tasks": tasks}
                    told = _told(sizes, op, shape)
                    yield Case(
                        f"multi_task_{op} forward", shape, sizes.dtype, partial(_draw, sizes, op, shape),
                        partial(_formula, op), _variants(sizes, op, told), Cost(told.bytes, told.flops),
                    )  # fmt: skip
