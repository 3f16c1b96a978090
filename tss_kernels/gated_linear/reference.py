"""The gated linear map in plain PyTorch: the specification, for any device and floating dtype."""

from __future__ import annotations

import torch

from tss_kernels.gates.reference import input_grad, masked_weight, pack_gates, unpack_gates

__all__ = ["forward", "input_grad", "scores_grad", "weight_grad"]


def forward(
    x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = x @ where(scores >= threshold, weight, 0).T + bias, and the gates as bits for the backward pass.

    x (rows, in), weight (out, in), scores (out, in) float32, bias (out,). Returns y (rows, out), uint8 (out, ceil(in / 8)).
    """
    packed = pack_gates(scores, threshold)
    return torch.nn.functional.linear(x, masked_weight(weight, packed), bias), packed


def _product(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """dyᵀ x, in float32 or in float64 where the inputs are."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return dy.to(wide).t() @ x.to(wide)


def scores_grad(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """ds = (dyᵀ x) * weight * (1 - importance), straight through the gate, on and off entries alike; float32 (out, in)."""
    grad = _product(dy, x) * weight
    if importance is not None:
        grad = grad * (1 - importance)
    return grad.float()


def weight_grad(dy: torch.Tensor, x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """dw = (dyᵀ x) * gate, in x's dtype; an off entry gets exactly 0."""
    product = _product(dy, x).to(x.dtype)
    return torch.where(unpack_gates(packed, x.shape[1]), product, 0)
