"""Which strategy should run a masked product: every candidate at every class of shapes that the tables know.

The tables in `tss_kernels/configs` hold, for each class, up to how many rows the fused kernel runs; beyond, W * g is
written once and the vendor's product runs on it. `bench.measure.proposals` turns measured cases into such entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

from bench.measure.case import Case, Inputs, Outputs, Variant
from bench.measure.cases import gated_linear
from bench.measure.cases.sizes import Sizes
from tss_kernels.backends.tables.cuda import FLOAT32, GENERAL, TILINGS, Tiling, has_warpgroups

MATERIALISE = "materialise"
ROWS = (4096, 16384, 1024, 65536, 256)
EVEN, UNEVEN = ((1024, 64), (64, 1024), (1024, 1024)), ((1001, 57), (57, 1001), (1001, 1001))
OUTPUT = {"forward": "y", "input_grad": "dx"}
OPERATIONS = tuple(f"dispatch {product}" for product in OUTPUT)


def _by_triton(product: str, strategy: Any, t: Inputs) -> Callable[[], Outputs]:
    from tss_kernels.gated_linear import triton

    if product == "forward":
        return lambda: {"y": triton.forward(t["x"], t["weight"], t["scores"], None, 0.0, strategy)[0]}
    return lambda: {"dx": triton.input_grad(t["dy"], t["weight"], t["packed"], strategy)}


def _by_cuda(product: str, tiling: Tiling | None, t: Inputs) -> Callable[[], Outputs]:
    """With a tiling, or W * g written once; forward from scores, whose gates are written too, as its table has it."""
    from tss_kernels.gated_linear import cuda
    from tss_kernels.gates.cuda import pack_gates
    from tss_kernels.tensors import empty_packed

    def forward() -> Outputs:
        if tiling is None:
            packed = empty_packed(t["scores"])
            return {"y": linear(t["x"], cuda.masked_weight(t["weight"], packed, t["scores"], 0.0))}
        return {"y": cuda.packed_linear(t["x"], t["weight"], pack_gates(t["scores"], 0.0), None, tiling, False)}

    if product == "forward":
        return forward
    return lambda: {"dx": cuda.input_grad(t["dy"], t["weight"], t["packed"], tiling, tiling is None)}


def tilings(dtype: torch.dtype, even: bool, device: torch.device) -> tuple[Tiling, ...]:
    """The tilings that can run a class of shapes and are made for it."""
    if dtype == torch.float32:
        return (FLOAT32,)
    if not even:
        return (GENERAL,)
    groups = has_warpgroups(device)
    return tuple(one for one in TILINGS if one != GENERAL and (groups or not one.name.endswith("groups")))


def _candidates(product: str, dtype: torch.dtype, even: bool, device: torch.device) -> tuple[Variant, ...]:
    def made(backend: str, name: str, bind: Any) -> Variant:
        return Variant(f"{backend} {name}", "ours", bind, op="gated_linear", backend=backend)

    return (
        *(made("triton", name, partial(_by_triton, product, name)) for name in ("fused", MATERIALISE)),
        *(made("cuda", one.name, partial(_by_cuda, product, one)) for one in tilings(dtype, even, device)),
        made("cuda", MATERIALISE, partial(_by_cuda, product, None)),
    )


def cases(sizes: Sizes) -> Iterator[Case]:
    """Both products, 16-bit before float32, even shapes before uneven ones."""
    rows, dtypes = ((40,), (sizes.dtype,)) if sizes.tiny else (ROWS, (sizes.dtype, torch.float32))
    shapes = (((32, 16),), ((21, 9),)) if sizes.tiny else (EVEN, UNEVEN)
    for dtype in dtypes:
        drawn = Sizes(**{**vars(sizes), "dtype": dtype})
        for even, group in zip((True, False), shapes, strict=True):
            for count in rows:
                for in_features, out_features in group:
                    for product, output in OUTPUT.items():
                        yield Case(
                            f"dispatch {product}", {"rows": count, "in": in_features, "out": out_features}, dtype,
                            partial(gated_linear.draw, drawn, count, in_features, out_features),
                            partial(gated_linear.only, (output,)), _candidates(product, dtype, even, sizes.device),
                            gated_linear.forward_cost(drawn, count, in_features, out_features),
                        )  # fmt: skip
