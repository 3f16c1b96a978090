"""Where one kernel for the whole adapter pays, and where two masked products do: both at every class of shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench.measure.case import Case, Cost, Inputs, Outputs, Variant
from bench.measure.cases import gated_adapter
from bench.measure.cases.sizes import Sizes
from tss_kernels.backends.tables.cuda_adapter import NARROW, WIDE, AdapterTile

OPERATION = "dispatch gated_adapter"
ONE, TWO = "one kernel", "two products"
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


def _one_by_triton(t: Inputs) -> Callable[[], Outputs]:
    from tss_kernels.gated_adapter import triton

    operands = _operands(t)

    def call() -> Outputs:
        before, triton.SLOW_ROWS = triton.SLOW_ROWS, 2**62  # otherwise two products run where they are predicted to win
        try:
            return {"y": triton.forward(*operands)[0]}
        finally:
            triton.SLOW_ROWS = before

    return call


def _one_by_cuda(tile: AdapterTile, t: Inputs) -> Callable[[], Outputs]:
    from tss_kernels.gated_adapter import cuda

    operands = _operands(t)
    return lambda: {"y": cuda.forward(*operands, tile=tile)[0]}


def _two(backend: str, t: Inputs) -> Callable[[], Outputs]:
    from tss_kernels.backends.dispatch import implementation
    from tss_kernels.gated_adapter import reference

    operands, product = _operands(t), implementation("gated_linear", backend).packed_linear
    return lambda: {"y": reference.forward(*operands, product=product)[0]}


def tiles(dtype: torch.dtype, bottleneck: int) -> tuple[AdapterTile, ...]:
    """The tiles that hold so many hidden units; none for float32."""
    if dtype == torch.float32:
        return ()
    return NARROW if bottleneck <= NARROW[0].hidden else WIDE


def _candidates(dtype: torch.dtype, bottleneck: int) -> tuple[Variant, ...]:
    def made(backend: str, name: str, bind: Any) -> Variant:
        return Variant(f"{backend} {name}", "ours", bind, op="gated_adapter", backend=backend)

    return (
        made("triton", ONE, _one_by_triton),
        made("triton", TWO, partial(_two, "triton")),
        *(made("cuda", tile.name, partial(_one_by_cuda, tile)) for tile in tiles(dtype, bottleneck)),
        made("cuda", TWO, partial(_two, "cuda")),
    )


def cases(sizes: Sizes) -> Iterator[Case]:
    """The forward pass from packed gates, the likeliest classes first."""
    for dtype, hidden, bottleneck in ((sizes.dtype, 32, 16),) if sizes.tiny else SHAPES:
        drawn = replace(sizes, dtype=dtype)
        for rows in (20,) if sizes.tiny else ROWS:
            bits, operands = 2 * hidden * bottleneck // 8, 2 * hidden * bottleneck * dtype.itemsize
            yield Case(
                OPERATION, {"rows": rows, "hidden": hidden, "bottleneck": bottleneck}, dtype,
                partial(gated_adapter.draw, drawn, (rows, hidden, bottleneck)), partial(gated_adapter.formula, False),
                _candidates(dtype, bottleneck),
                Cost(2 * rows * hidden * dtype.itemsize + operands + bits, 4 * rows * hidden * bottleneck),
            )  # fmt: skip
