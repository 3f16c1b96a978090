"""Where one kernel for the whole adapter pays, and where two masked products do: both at every class of shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bench.measure.case import Case, Cost, Inputs, Outputs, Variant
from bench.measure.cases import gated_adapter
from bench.measure.cases.dispatch import crossover
from bench.measure.cases.sizes import Sizes

OPERATION = "dispatch gated_adapter"
STRATEGIES = ("one kernel", "two products")
ROWS = (4096, 16384, 1024, 65536, 256)
SHAPES = (
    (torch.bfloat16, 1024, 64),
    (torch.bfloat16, 1024, 128),
    (torch.float32, 1024, 64),
    (torch.bfloat16, 1001, 57),
)


def _operands(t: Inputs) -> tuple[Any, ...]:
    names = ("x", "down_weight", "down_packed", "up_weight", "up_packed", "down_bias", "up_bias")
    return (*(t[name] for name in names), "relu")


def _bind_one(t: Inputs) -> Callable[[], Outputs]:
    from tss_kernels.gated_adapter import triton

    operands = _operands(t)

    def call() -> Outputs:
        before, triton.SLOW_ROWS = triton.SLOW_ROWS, 2**62  # otherwise two products run where they are predicted to win
        try:
            return {"y": triton.forward(*operands)[0]}
        finally:
            triton.SLOW_ROWS = before

    return call


def _bind_two(t: Inputs) -> Callable[[], Outputs]:
    from tss_kernels.gated_adapter import reference
    from tss_kernels.gated_linear.triton import packed_linear

    operands = _operands(t)
    return lambda: {"y": reference.forward(*operands, product=packed_linear)[0]}


def cases(sizes: Sizes) -> Iterator[Case]:
    """The forward pass from packed gates, the likeliest classes first."""
    for dtype, hidden, bottleneck in ((sizes.dtype, 32, 16),) if sizes.tiny else SHAPES:
        drawn = Sizes(**{**vars(sizes), "dtype": dtype, "hidden": hidden, "bottleneck": bottleneck})
        for rows in (20,) if sizes.tiny else ROWS:
            bits, operands = 2 * hidden * bottleneck // 8, 2 * hidden * bottleneck * dtype.itemsize
            yield Case(
                OPERATION, {"rows": rows, "hidden": hidden, "bottleneck": bottleneck}, dtype,
                partial(gated_adapter.draw, drawn, rows), partial(gated_adapter.formula, False),
                (Variant("one kernel", "ours", _bind_one), Variant("two products", "ours", _bind_two)),
                Cost(2 * rows * hidden * dtype.itemsize + operands + bits, 4 * rows * hidden * bottleneck),
            )  # fmt: skip


def proposal(records: Sequence[dict[str, Any]], basis: str) -> list[dict[str, Any]]:
    """Up to how many rows one kernel runs, by dtype, width and bottleneck; None for any number."""
    points: dict[tuple[str, int, int], list[tuple[int, float]]] = {}
    for record in records:
        times = [record["variants"].get(name, {}).get("median_us") for name in STRATEGIES]
        if record["operation"] == OPERATION and None not in times:
            shape = record["shape"]
            key = (record["dtype"], shape["hidden"], shape["bottleneck"])
            points.setdefault(key, []).append((shape["rows"], times[0] / times[1]))
    return [
        {
            "dtype": dtype, "hidden": hidden, "bottleneck": bottleneck, "rows": crossover(found),
            "basis": f"measured {basis}", "points": sorted(found),
        }
        for (dtype, hidden, bottleneck), found in points.items()
    ]  # fmt: skip
