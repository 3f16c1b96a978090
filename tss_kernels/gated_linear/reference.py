"""The gated linear map in plain PyTorch: the specification of every backend."""

from __future__ import annotations

import torch

from tss_kernels.gates.reference import gates, masked, pack, unpack_gates


def forward(
    x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute y = x (W * g)ᵀ + b with g = 1[s >= threshold], and the packed gates for the backward pass.

    x (rows, in); weight (out, in) of x's dtype; scores (out, in) float32; bias (out,) or None.
    Returns y (rows, out) of x's dtype and uint8 (out, ceil(in / 8)).
    """
    gate = gates(scores, threshold)
    return torch.nn.functional.linear(x, masked(weight, gate), bias), pack(gate)


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Compute y = x (W * g)ᵀ + b by packed uint8 (out, ceil(in / 8)), bit-identical to `forward` with these gates."""
    return torch.nn.functional.linear(x, masked(weight, unpack_gates(packed, weight.shape[1])), bias)


def input_grad(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Compute dL/dx = dY (W * g): dy (rows, out); weight (out, in); packed as from `forward`. Returns (rows, in)."""
    return dy @ masked(weight, unpack_gates(packed, weight.shape[1]))


def scores_grad(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """Compute dL/ds = (dYᵀ x) * W * (1 - I), straight-through: for on and off entries alike, without clipping.

    dy (rows, out); x (rows, in); weight and importance (out, in). Summed in float32 or wider, returned in float32.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return scores_grad_of(dy.to(wide).T @ x.to(wide), weight, importance)


def scores_grad_of(product: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    """Compute dL/ds from the product dYᵀ x (..., out, in), float32 or float64, in whose dtype the rest is computed."""
    grad = product * weight.to(product.dtype)
    if importance is not None:
        grad = grad * (1 - importance.to(product.dtype))
    return grad.to(torch.float32).contiguous()


def weight_grad(dy: torch.Tensor, x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Compute dL/dW = (dYᵀ x) * g, exactly 0 if g is off: dy (rows, out); x (rows, in); (out, in) of x's dtype."""
    return masked(dy.T @ x, unpack_gates(packed, x.shape[1]))
