"""What CUDA C++ kernels execute, counted while they run compiled for the CPU (csrc/emulator): of shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from tss_kernels.backends.cuda import kernels

CPU = torch.device("cpu")


def executed(call: Callable[[], object]) -> dict[str, int]:
    """What one call executes, by csrc/emulator/counts.h's names."""
    module = kernels(CPU)
    module.take_counts()
    call()
    return dict(module.take_counts())


class Layer(NamedTuple):
    """Operands of a gated linear map of this size; their values change no count."""

    x: torch.Tensor
    dy: torch.Tensor
    weight: torch.Tensor
    scores: torch.Tensor
    packed: torch.Tensor


def layer(rows: int, in_features: int, out_features: int, dtype: torch.dtype) -> Layer:
    """A layer of zeros whose gates are all on."""
    x, dy = torch.zeros(rows, in_features, dtype=dtype), torch.zeros(rows, out_features, dtype=dtype)
    scores = torch.zeros(out_features, in_features)
    packed = torch.zeros((out_features, -(-in_features // 8)), dtype=torch.uint8)
    return Layer(x, dy, scores.to(dtype), scores, packed)
