"""pack_gates and unpack_gates: scores to bits, bits to gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

import tss_kernels
from bench.cases import rivals
from bench.cases.sizes import Draw, Sizes, late_compiled
from bench.core.case import Case, Cost, Inputs, Outputs, Precision, Role, Variant, by_backends

Pack = Callable[[torch.Tensor], torch.Tensor]
Unpack = Callable[[torch.Tensor, int], torch.Tensor]


def _draw(sizes: Sizes, out_features: int, in_features: int, seed: int) -> Inputs:
    scores = Draw(sizes, seed).normal(out_features, in_features, dtype=torch.float32)
    return {"scores": scores, "packed": tss_kernels.pack_gates(scores)}


def _formula(t: Inputs, precision: Precision) -> Outputs:
    bits = np.packbits((t["scores"] >= 0).cpu().numpy(), axis=1, bitorder="little")
    return {"packed": torch.from_numpy(bits).to(t["scores"].device)}


def _unpacked(t: Inputs, precision: Precision) -> Outputs:
    return {"gates": t["scores"] >= 0}


def _bind(run: Pack, t: Inputs) -> Callable[[], Outputs]:
    return lambda: {"packed": run(t["scores"])}


def _variants(sizes: Sizes, told: tss_kernels.Explanation) -> tuple[Variant, ...]:
    eager = late_compiled(rivals.pack, sizes)
    runs: list[tuple[str, Role, Pack]] = [
        ("tss", "ours", tss_kernels.pack_gates),
        ("threshold only", "floor", lambda scores: scores >= 0),
        ("eager", "rival", rivals.pack),
        ("compile", "rival", lambda scores: eager()(scores)),
    ]
    made = [Variant(name, role, partial(_bind, run)) for name, role, run in runs]
    return (*by_backends(told, sizes.device, made[0]), *made[1:])


def _bind_unpack(run: Unpack, t: Inputs) -> Callable[[], Outputs]:
    return lambda: {"gates": run(t["packed"], t["scores"].shape[1])}


def _unpack_variants(sizes: Sizes, told: tss_kernels.Explanation) -> tuple[Variant, ...]:
    def eager(packed: torch.Tensor, in_features: int) -> torch.Tensor:
        return rivals.unpack(packed, in_features, torch.bool)

    return (
        *by_backends(told, sizes.device, Variant("tss", "ours", partial(_bind_unpack, tss_kernels.unpack_gates))),
        Variant("eager", "rival", partial(_bind_unpack, eager)),
    )


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield the cases, with one matrix of each shape."""
    for in_features, out_features in sizes.features:
        told = tss_kernels.explain("pack_gates", sizes.like(out_features, in_features, dtype=torch.float32))
        yield Case(
            "pack_gates", {"out": out_features, "in": in_features}, torch.float32,
            partial(_draw, sizes, out_features, in_features), _formula, _variants(sizes, told),
            Cost(told.bytes, 0),
        )  # fmt: skip
        packed = sizes.like(out_features, (in_features + 7) // 8, dtype=torch.uint8)
        told = tss_kernels.explain("unpack_gates", packed, in_features)
        yield Case(
            "unpack_gates", {"out": out_features, "in": in_features}, torch.uint8,
            partial(_draw, sizes, out_features, in_features), _unpacked, _unpack_variants(sizes, told),
            Cost(told.bytes, 0),
        )  # fmt: skip
