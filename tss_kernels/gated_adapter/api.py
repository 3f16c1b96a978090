"""The gated adapter: checks, and its composition from gated linear maps."""

from __future__ import annotations

import torch

from tss_kernels.gated_adapter.reference import ACTIVATIONS, compose
from tss_kernels.gated_linear import gated_linear


def check_activation(owner: str, activation: str) -> None:
    """Raise ValueError unless `activation` is one of ACTIVATIONS."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{owner}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def gated_adapter(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_scores: torch.Tensor,
    up_weight: torch.Tensor,
    up_scores: torch.Tensor,
    down_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    *,
    activation: str = "relu",
    threshold: float = 0.0,
    down_importance: torch.Tensor | None = None,
    up_importance: torch.Tensor | None = None,
) -> torch.Tensor:
    """x + up(activation(down(x))), both maps gated as in `gated_linear`; the residual is included.

    Each of its two products goes through the dispatcher as a `gated_linear`.

    Args:
        x: (..., d), floating.
        down_weight, up_weight: (r, d) and (d, r), x's dtype.
        down_scores, up_scores: like their weights, float32.
        down_bias, up_bias: (r,) and (d,), or None.
        activation: relu, gelu, silu or tanh.
        threshold: a gate is on where its score is at least this.
        down_importance, up_importance: like their weights, in [0, 1], or None.

    Returns:
        (..., d) in x's dtype.

    Raises:
        ValueError, TypeError: an unknown activation; shapes, devices or dtypes that do not fit.
    """
    check_activation("gated_adapter", activation)
    if up_weight.shape != down_weight.shape[::-1]:
        raise ValueError(
            f"gated_adapter: up_weight must be down_weight's shape reversed, got {tuple(up_weight.shape)} "
            f"and {tuple(down_weight.shape)}"
        )

    def down(rows: torch.Tensor) -> torch.Tensor:
        return gated_linear(rows, down_weight, down_scores, down_bias, threshold=threshold, importance=down_importance)

    def up(hidden: torch.Tensor) -> torch.Tensor:
        return gated_linear(hidden, up_weight, up_scores, up_bias, threshold=threshold, importance=up_importance)

    return compose(x, down, up, activation).to(x.dtype)
