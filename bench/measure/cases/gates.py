"""pack_gates: scores to bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

import tss_kernels
from bench.measure import rivals
from bench.measure.case import Case, Cost, Inputs, Outputs, Precision, Role, Variant
from bench.measure.cases.sizes import Draw, Sizes, late_compiled

Pack = Callable[[torch.Tensor], torch.Tensor]


def _draw(sizes: Sizes, out_features: int, in_features: int, seed: int) -> Inputs:
    return {"scores": Draw(sizes, seed).normal(out_features, in_features, dtype=torch.float32)}


def _formula(t: Inputs, precision: Precision) -> Outputs:
    bits = np.packbits((t["scores"] >= 0).cpu().numpy(), axis=1, bitorder="little")
    return {"packed": torch.from_numpy(bits).to(t["scores"].device)}


def _bind(run: Pack, t: Inputs) -> Callable[[], Outputs]:
    return lambda: {"packed": run(t["scores"])}


def _variants(sizes: Sizes) -> tuple[Variant, ...]:
    eager = late_compiled(rivals.pack, sizes)
    runs: list[tuple[str, Role, Pack]] = [
        ("tss", "ours", tss_kernels.pack_gates),
        ("threshold only", "floor", lambda scores: scores >= 0),
        ("eager", "rival", rivals.pack),
        ("compile", "rival", lambda scores: eager()(scores)),
    ]
    return tuple(Variant(name, role, partial(_bind, run), late=name == "compile") for name, role, run in runs)


def cases(sizes: Sizes) -> Iterator[Case]:
    """One matrix of each shape."""
    for in_features, out_features in sizes.features:
        counted = tss_kernels.explain("pack_gates", torch.empty((out_features, in_features), device="meta"))
        yield Case(
            "pack_gates", {"out": out_features, "in": in_features}, torch.float32,
            partial(_draw, sizes, out_features, in_features), _formula, _variants(sizes), Cost(counted.bytes, 0),
        )  # fmt: skip
