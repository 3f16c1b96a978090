"""Importance in plain PyTorch: the specification."""

from __future__ import annotations

import torch

EPSILON = 1e-6


def normalize_importance(raw: torch.Tensor, per: str) -> torch.Tensor:
    """|tanh((raw - mean) / (std + 1e-6))| with mean and population standard deviation of the tensor or of each row."""
    dims = tuple(range(raw.dim())) if per == "tensor" else (-1,)
    centred = raw - raw.mean(dims, keepdim=True)
    deviation = centred.square().mean(dims, keepdim=True).sqrt()
    return torch.tanh(centred / (deviation + EPSILON)).abs()


def accumulate_importance_(total: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """total <- max(total, new), elementwise, in place."""
    return torch.maximum(total, new, out=total)
