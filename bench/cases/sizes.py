"""At which sizes everything is measured, and random inputs of those sizes."""

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

    rows: batch x length, the most telling first. features: (in, out) of one map. adapters: (hidden, bottleneck) of one.
    scores: name -> shapes of the tensors of one optimizer step. compiled: the rows at which `torch.compile` competes,
    None for all.
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
        """A tensor that takes no memory, to ask `explain` about; on no device where the GPU is not there."""
        return torch.empty((), device=self._where(), dtype=dtype or self.dtype).expand(shape)

    def written(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The same for what is written in place, whose elements must lie apart: memory that nothing touches."""
        return torch.empty(shape, device=self._where(), dtype=dtype or self.dtype)

    def _where(self) -> torch.device:
        there = self.device.type != "cuda" or torch.cuda.is_available()
        return self.device if there else torch.device("meta")

    def compiles(self, rows: int) -> bool:
        """Whether a compiled rival competes at so many rows."""
        return self.compiled is None or rows in self.compiled


# 3.1 M scores are those of BART-Large with adapters of 64.
SCORES = {
    "3 M scores in 48 tensors": ((64, 1024), (1024, 64)) * 24,
    "3 M scores in 1 tensor": ((3072, 1024),),
    "3 M scores in 768 tensors": ((64, 64),) * 768,
    "100 M scores": ((1024, 1024),) * 100,
}


def bart_large(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Sizes:
    """The sizes that are published: 48 gated matrices of 24 adapters, 3.1 M scores."""
    return Sizes(
        device, dtype, False, (16384, 4096, 65536), ((1024, 64), (64, 1024), (1024, 1024)), ((1024, 64),),
        SCORES,
    )  # fmt: skip


def cpu(device: torch.device, dtype: torch.dtype = torch.float32) -> Sizes:
    """What a few cores can do: BART-Large's adapters and those of the embedded backbone, at rows of small batches."""
    embedded = ((64, 256), (256, 64)) * 6
    return Sizes(
        device, dtype, False, (512, 2048), ((256, 64), (64, 256), (1024, 64), (64, 1024), (1024, 1024)),
        ((256, 64), (1024, 64)), {"197 k scores in 12 tensors": embedded, **SCORES}, compiled=(512,),
    )  # fmt: skip


def published(device: torch.device) -> Sizes:
    """The sizes that a kind of machine is measured at."""
    return bart_large(device) if device.type == "cuda" else cpu(device)


def tiny(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Sizes:
    """Sizes at which nothing is worth timing."""
    return Sizes(device, dtype, True, (33,), ((24, 8),), ((24, 8),), {"two tensors": ((8, 24), (24, 8))})


class Draw:
    """Random tensors from a seed, on the device and in the order of the calls."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self.device, self.dtype = sizes.device, sizes.dtype
        self.generator = torch.Generator(sizes.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """N(0, scale^2), in the sizes' dtype unless another is named."""
        drawn = torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float32)
        return (drawn * scale).to(dtype or self.dtype)

    def unit(self, *shape: int) -> Tensor:
        """U(0, 1) in float32."""
        return torch.rand(shape, generator=self.generator, device=self.device)


def late_compiled(function: Callable[..., Any], sizes: Sizes) -> Callable[[], Callable[..., Any]]:
    """torch.compile of a rival, made at its first use: a plan lists cases without compiling any."""
    return cache(lambda: rivals.compiled(function, sizes.tiny))


def gradients(outputs: Tensor, names: tuple[str, ...], inputs: Inputs, *, retain_graph: bool = False) -> Outputs:
    """The gradients of the named inputs for the inputs' "dy", named "d" + name."""
    found = torch.autograd.grad(outputs, [inputs[name] for name in names], inputs["dy"], retain_graph)
    return {f"d{name}": grad for name, grad in zip(names, found, strict=True)}
