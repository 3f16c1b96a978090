"""packed_linear, the forward pass of a sealed task, with packed gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.functional import linear

import tss_kernels
from bench.cases import gated_linear, rivals
from bench.cases.sizes import Sizes, late_compiled
from bench.core.case import Case, Cost, Inputs, Outputs, Precision, Role, Variant, by_backends

Tensor = torch.Tensor


def _formula(t: Inputs, precision: Precision) -> Outputs:
    return gated_linear.formula(("y",), t, precision)


def _eager(x: Tensor, weight: Tensor, packed: Tensor) -> Tensor:
    return linear(x, weight * rivals.unpack(packed, weight.shape[1], weight.dtype))


def _materialise(x: Tensor, weight: Tensor, packed: Tensor) -> Tensor:
    return linear(x, torch.where(tss_kernels.unpack_gates(packed, weight.shape[1]), weight, 0))


def _bind(run: Callable[[Tensor, Tensor, Tensor], Tensor], t: Inputs) -> Callable[[], Outputs]:
    def call() -> Outputs:
        with torch.no_grad():
            return {"y": run(t["x"], t["weight"], t["packed"])}

    return call


def _variants(sizes: Sizes, told: tss_kernels.Explanation, compiled: bool) -> tuple[Variant, ...]:
    eager = late_compiled(_eager, sizes)
    runs: list[tuple[str, Role, Callable[[Tensor, Tensor, Tensor], Tensor]]] = [
        ("tss", "ours", tss_kernels.packed_linear),
        ("ungated", "floor", lambda x, weight, packed: linear(x, weight)),
        ("materialise", "rival", _materialise),
        ("eager", "rival", _eager),
        ("compile", "rival", lambda x, weight, packed: eager()(x, weight, packed)),
    ]
    made = [Variant(name, role, partial(_bind, run)) for name, role, run in runs if compiled or name != "compile"]
    return (*by_backends(told, sizes.device, made[0]), *made[1:])


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield a case for every shape."""
    for rows in sizes.rows:
        for in_features, out_features in sizes.features:
            packed = sizes.like(out_features, (in_features + 7) // 8, dtype=torch.uint8)
            weight = sizes.like(out_features, in_features)
            told = tss_kernels.explain("packed_linear", sizes.like(rows, in_features), weight, packed)
            yield Case(
                "packed_linear forward", {"rows": rows, "in": in_features, "out": out_features}, sizes.dtype,
                partial(gated_linear.draw, sizes, rows, in_features, out_features), _formula,
                _variants(sizes, told, sizes.compiles(rows)), Cost(told.bytes, told.flops),
            )  # fmt: skip
