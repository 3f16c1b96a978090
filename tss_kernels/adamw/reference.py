"""Soft-masked AdamW in plain PyTorch: the specification of every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def soft_masked_adamw_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    importances: Sequence[torch.Tensor | None],
    *,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    site: str,
) -> None:
    """Take one AdamW step in place; `step` counts from 1.

    g' = g (1 - I) at the site "gradient", else g; m <- beta1 m + (1 - beta1) g'; v <- beta2 v + (1 - beta2) g'^2;
    D = lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps) + lr weight_decay p;
    p <- p - D (1 - I) at the site "update", else p - D. Computed in float32 or wider.
    """
    made = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, lr * weight_decay if weight_decay != 0 else None
    options = beta1, beta2, eps, site
    for *tensors, importance in zip(params, grads, exp_avgs, exp_avg_sqs, importances, strict=True):
        _advance(tensors, importance, made, options)


def soft_masked_adamw_capturable_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    importances: Sequence[torch.Tensor | None],
    *,
    steps: Sequence[torch.Tensor],
    lr: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    site: str,
) -> None:
    """Take the same step with each parameter's step number and the learning rate as 0-dim tensors."""
    rate = lr.to(torch.float64)
    for *tensors, importance, step in zip(params, grads, exp_avgs, exp_avg_sqs, importances, steps, strict=True):
        number = step.to(torch.float64)
        made = (
            rate / (1 - beta1**number),
            (1 - beta2**number).sqrt(),
            rate * weight_decay if weight_decay != 0 else None,
        )
        _advance(tensors, importance, made, (beta1, beta2, eps, site))


def _advance(
    tensors: Sequence[torch.Tensor],
    importance: torch.Tensor | None,
    made: tuple[Any, Any, Any],
    options: tuple[float, float, float, str],
) -> None:
    """Take the step of one parameter.

    tensors: param, grad, exp_avg, exp_avg_sq. made: lr / (1 - beta1^step), the square root of 1 - beta2^step, and
    lr weight_decay or None.
    """
    (step_size, root_correction, decay), (beta1, beta2, eps, site) = made, options
    param, _, exp_avg, exp_avg_sq = tensors
    wide = torch.promote_types(param.dtype, torch.float32)
    keep = None if importance is None else 1 - importance.to(wide)
    p, g, m, v = (tensor.to(wide) for tensor in tensors)
    if keep is not None and site == "gradient":
        g = g * keep
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    change = step_size * m / (v.sqrt() / root_correction + eps)
    if decay is not None:
        change = change + decay * p
    if keep is not None and site == "update":
        change = change * keep
    param.copy_(p - change)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
