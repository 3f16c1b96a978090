"""Soft-masked AdamW in plain PyTorch: the specification."""

from __future__ import annotations

from collections.abc import Sequence

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
    """One AdamW step in place.

    With m, v the moments and their bias corrections, D = -lr (weight_decay p + m / (sqrt v + eps)):
    site "gradient" lets g (1 - I) into m and v; site "update" applies p <- p + (1 - I) D, from the plain g.
    """
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    for p, g, m, v, importance in zip(params, grads, exp_avgs, exp_avg_sqs, importances, strict=True):
        keep = None if importance is None else 1 - importance
        if keep is not None and site == "gradient":
            g = g * keep
        m.lerp_(g.to(m.dtype), 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = v.sqrt().div_(correction2**0.5).add_(eps)
        if keep is not None and site == "update":
            delta = (lr / correction1) * (m / denominator)
            if weight_decay:
                delta.add_(p, alpha=lr * weight_decay)
            p.sub_(delta.mul_(keep))
        else:
            if weight_decay:
                p.mul_(1 - lr * weight_decay)
            p.addcdiv_(m, denominator, value=-lr / correction1)
