"""Trained modules: their parameters stay float32 when the model around them is cast to a narrower dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Float32Module(nn.Module):
    """Module whose floating-point tensors follow the model's device but keep their dtype."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Float32Module:
        return super()._apply(keeping_dtype(fn), recurse)


def keeping_dtype(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `fn` without changes of dtype: if it changes a tensor's dtype, the tensor is only moved to the device."""

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return keep
