"""normalize_importance and accumulate_importance_."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import tss_kernels
from bench.cases import rivals
from bench.cases.sizes import Draw, Sizes, late_compiled
from bench.core.case import Case, Cost, Inputs, Outputs, Precision, Role, Variant, by_backends

Normalise = Callable[[torch.Tensor], torch.Tensor]


def _draw(sizes: Sizes, out_features: int, in_features: int, seed: int) -> Inputs:
    random = Draw(sizes, seed)
    # about as large as gradients: the 1e-6 in the formula must not matter in one precision but not in another
    raw = random.normal(out_features, in_features, dtype=torch.float32, scale=1e-3)
    return {"raw": raw, "total": random.unit(out_features, in_features), "new": random.unit(out_features, in_features)}


def _normalised(t: Inputs, precision: Precision) -> Outputs:
    raw = t["raw"].to(precision.dtype)
    centred = raw - raw.mean()
    return {"importance": (centred / (centred.square().mean().sqrt() + 1e-6)).tanh().abs()}


def _accumulated(t: Inputs, precision: Precision) -> Outputs:
    return {"total": torch.maximum(t["total"], t["new"]).to(precision.dtype)}


def _bind(run: Normalise, t: Inputs) -> Callable[[], Outputs]:
    return lambda: {"importance": run(t["raw"])}


def _bind_accumulate(run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], t: Inputs) -> Callable[[], Outputs]:
    return lambda: {"total": run(t["total"], t["new"])}


def _larger(total: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return torch.maximum(total, new, out=total)


def _normalise_variants(sizes: Sizes, told: tss_kernels.Explanation) -> tuple[Variant, ...]:
    eager = late_compiled(rivals.normalise, sizes)
    runs: list[tuple[str, Role, Normalise]] = [
        ("tss", "ours", tss_kernels.normalize_importance),
        ("eager", "rival", rivals.normalise),
        ("compile", "rival", lambda raw: eager()(raw)),
    ]
    made = [Variant(name, role, partial(_bind, run)) for name, role, run in runs]
    return (*by_backends(told, sizes.device, made[0]), *made[1:])


def _accumulate_variants(sizes: Sizes, told: tss_kernels.Explanation) -> tuple[Variant, ...]:
    ours = Variant("tss", "ours", partial(_bind_accumulate, tss_kernels.accumulate_importance_))
    eager = Variant("eager", "rival", partial(_bind_accumulate, _larger))
    return (*by_backends(told, sizes.device, ours), eager)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield the cases, with one matrix of each shape."""
    for in_features, out_features in sizes.features:
        like = sizes.like(out_features, in_features, dtype=torch.float32)
        shape, drawn = {"out": out_features, "in": in_features}, partial(_draw, sizes, out_features, in_features)
        told = tss_kernels.explain("normalize_importance", like)
        yield Case(
            "normalize_importance", shape, torch.float32, drawn, _normalised, _normalise_variants(sizes, told),
            Cost(told.bytes, 0),
        )  # fmt: skip
        told = tss_kernels.explain(
            "accumulate_importance_", sizes.written(out_features, in_features, dtype=torch.float32), like
        )
        yield Case(
            "accumulate_importance_", shape, torch.float32, drawn, _accumulated, _accumulate_variants(sizes, told),
            Cost(told.bytes, 0),
        )  # fmt: skip
