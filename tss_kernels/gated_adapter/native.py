"""The gated adapter in C++: the reference's products and activation, each weight masked from bits in one pass."""

from __future__ import annotations

import torch

from tss_kernels.gated_adapter import reference
from tss_kernels.gated_linear import native as products


def forward(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    down_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and hidden as `reference.forward` does."""
    return reference.forward(
        x, down_weight, down_packed, up_weight, up_packed, down_bias, up_bias, activation, products.packed_linear
    )


def input_grad(
    dy: torch.Tensor,
    hidden: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    activation: str,
    for_x: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dx and d_hidden as `reference.input_grad` does."""
    return reference.input_grad(
        dy, hidden, down_weight, down_packed, up_weight, up_packed, activation, for_x, products.input_grad
    )


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the adapter of shape (rows, d, bottleneck) runs."""
    return f"two packed_linear around the activation: {products.configuration(op, device, dtype, shape)}"
