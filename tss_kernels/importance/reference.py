"""Importance in plain PyTorch: the specification of every backend."""

from __future__ import annotations

import torch

EPS = 1e-6


def normalize_importance(raw: torch.Tensor, per: str) -> torch.Tensor:
    """Compute I = |tanh((a - mean a) / (std a + 1e-6))|, mean and (population) std over the tensor or each row.

    raw (out, in), per "tensor" or "row"; float32 (out, in) in [0, 1]. One element or equal elements give 0.
    """
    wide = raw.to(torch.float64)
    if raw.numel() == 0:
        return wide.to(torch.float32)
    dims = (-1,) if per == "row" else tuple(range(raw.dim()))
    # From the first element on, so that equal elements are exactly 0, which their rounded mean would not give.
    wide = wide - (wide[..., :1] if per == "row" else wide.flatten()[0])
    centred = wide - wide.mean(dims, keepdim=True)
    deviation = centred.square().mean(dims, keepdim=True).sqrt()
    return (centred / (deviation + EPS)).tanh().abs().to(torch.float32)


def accumulate_importance_(total: torch.Tensor, new: torch.Tensor) -> None:
    """Set total to max(total, new), elementwise and in place."""
    total.copy_(torch.maximum(total, new.to(total.dtype)))


def update_importance_(total: torch.Tensor, raw: torch.Tensor, per: str) -> None:
    """Set total to max(total, I) in place, with I = normalize_importance(raw, per)."""
    accumulate_importance_(total, normalize_importance(raw, per))
