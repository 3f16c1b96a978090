"""Sizes at which everything is measured, and random inputs of these sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from bench.cases import rivals
from bench.core.case import Inputs, Outputs

Tensor = torch.Tensor


@dataclass(frozen=True)
class Sizes:
    """BART-Large's sizes, those of smaller models for a CPU, or tiny ones that only show that everything runs.

    rows: batch x length, the most informative first. features: (in, out) of a map. adapters: (hidden, bottleneck) of an
    adapter. scores: name -> shapes of the tensors of one optimizer step. compiled: the numbers of rows at which
    `torch.compile` competes, None for all.
    """

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    rows: tuple[int, ...]
    features: tuple[tuple[int, int], ...]
    adapters: tuple[tuple[int, int], ...]
    scores: dict[str, tuple[tuple[int, int], ...]]
    compiled: tuple[int, ...] | None = None

    def like(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor that takes almost no memory, for `explain`; on the meta device if the GPU is missing."""
        return torch.empty((), device=self._where(), dtype=dtype or self.dtype).expand(shape)

    def written(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return the same for tensors written in place, whose elements must not overlap: uninitialized memory."""
        return torch.empty(shape, device=self._where(), dtype=dtype or self.dtype)

    def _where(self) -> torch.device:
        there = self.device.type != "cuda" or torch.cuda.is_available()
        return self.device if there else torch.device("meta")

    def compiles(self, rows: int) -> bool:
        """Return whether a compiled rival competes at this number of rows."""
        return self.compiled is None or rows in self.compiled


# BART-Large with adapters of 64 has 3.1 M scores.
SCORES = {
    "3 M scores in 48 tensors": ((64, 1024), (1024, 64)) * 24,
    "3 M scores in 1 tensor": ((3072, 1024),),
    "3 M scores in 768 tensors": ((64, 64),) * 768,
    "100 M scores": ((1024, 1024),) * 100,
}


def bart_large(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Sizes:
    """Return the published GPU sizes: 48 gated matrices of 24 adapters, 3.1 M scores."""
    return Sizes(
        device, dtype, False, (16384, 4096, 65536), ((1024, 64), (64, 1024), (1024, 1024)), ((1024, 64),),
        SCORES,
    )  # fmt: skip


def cpu(device: torch.device, dtype: torch.dtype = torch.float32) -> Sizes:
    """Return sizes for a few cores: adapters of BART-Large and the embedded backbone, at the rows of small batches."""
    embedded = ((64, 256), (256, 64)) * 6
    return Sizes(
        device, dtype, False, (512, 2048), ((256, 64), (64, 256), (1024, 64), (64, 1024), (1024, 1024)),
        ((256, 64), (1024, 64)), {"197 k scores in 12 tensors": embedded, **SCORES}, compiled=(512,),
    )  # fmt: skip


def published(device: torch.device) -> Sizes:
    """Return the sizes at which a kind of device is measured."""
    return bart_large(device) if device.type == "cuda" else cpu(device)


def tiny(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Sizes:
    """Return sizes whose times mean nothing."""
    return Sizes(device, dtype, True, (33,), ((24, 8),), ((24, 8),), {"two tensors": ((8, 24), (24, 8))})


class Draw:
    """Random tensors from a seed, on the device, in the order of the calls."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self.device, self.dtype = sizes.device, sizes.dtype
        self.generator = torch.Generator(sizes.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Draw from N(0, scale^2), in the sizes' dtype unless another is given."""
        drawn = torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float32)
        return (drawn * scale).to(dtype or self.dtype)

    def unit(self, *shape: int) -> Tensor:
        """Draw from U(0, 1) in float32."""
        return torch.rand(shape, generator=self.generator, device=self.device)


def late_compiled(function: Callable[..., Any], sizes: Sizes) -> Callable[[], Callable[..., Any]]:
    """Compile a rival at its first use: a plan lists cases without compiling any."""
    return cache(lambda: rivals.compiled(function, sizes.tiny))


def gradients(outputs: Tensor, names: tuple[str, ...], inputs: Inputs, *, retain_graph: bool = False) -> Outputs:
    """Return the gradients of the named inputs for the inputs' "dy", as "d" + name."""
    found = torch.autograd.grad(outputs, [inputs[name] for name in names], inputs["dy"], retain_graph)
    return {f"d{name}": grad for name, grad in zip(names, found, strict=True)}
