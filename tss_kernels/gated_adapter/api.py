"""gated_adapter: checks and the composition of two gated products."""

from __future__ import annotations

from functools import partial

import torch

from tss_kernels.checks import check_choice
from tss_kernels.dispatch import select
from tss_kernels.gated_adapter.reference import ACTIVATIONS, compose
from tss_kernels.gated_linear.api import gated_linear


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
    """x + up(activation(down(x))) with both maps gated: the whole adapter, its residual included.

    x (..., d); down_weight, down_scores, down_importance (bottleneck, d); up_weight, up_scores, up_importance
    (d, bottleneck); down_bias (bottleneck,); up_bias (d,); activation "relu", "gelu" (exact), "silu" or "tanh".
    dtypes, gradients and errors as gated_linear's; returns (..., d). Each product is dispatched as a gated_linear.
    """
    check_choice("activation", activation, tuple(ACTIVATIONS))
    if up_weight.shape != down_weight.shape[::-1]:
        raise ValueError(
            f"up_weight must have down_weight's shape {tuple(down_weight.shape)} reversed but has "
            f"{tuple(up_weight.shape)}"
        )
    select("gated_adapter", x.device, x.dtype)
    down = partial(
        gated_linear,
        weight=down_weight,
        scores=down_scores,
        bias=down_bias,
        threshold=threshold,
        importance=down_importance,
    )
    up = partial(
        gated_linear, weight=up_weight, scores=up_scores, bias=up_bias, threshold=threshold, importance=up_importance
    )
    return compose(x, down, up, activation)
