"""Soft-masked AdamW in plain PyTorch: the specification that every backend is held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tss_kernels.gates.reference import gates, pack


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
    packed: Sequence[torch.Tensor | None] | None = None,
    thresholds: Sequence[float] = (),
    flips: torch.Tensor | None = None,
) -> None:
    """One AdamW step in place, its number `step` counted from 1.

    g' = g (1 - I) at the site "gradient", else g; m <- beta1 m + (1 - beta1) g'; v <- beta2 v + (1 - beta2) g'^2;
    D = lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps) + lr weight_decay p;
    p <- p - D (1 - I) at the site "update", else p - D. Computed in float32 or wider. Where `packed` has a tensor, it
    becomes the gates of the new p at that threshold, and their changes are added to that entry of flips.
    """
    root_correction = (1 - beta2**step) ** 0.5
    step_size = lr / (1 - beta1**step)
    for index, (param, grad, exp_avg, exp_avg_sq, importance, bits) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, importances, packed or [None] * len(params), strict=True)
    ):
        wide = torch.promote_types(param.dtype, torch.float32)
        keep = None if importance is None else 1 - importance.to(wide)
        g, m, v, p = (tensor.to(wide) for tensor in (grad, exp_avg, exp_avg_sq, param))
        if keep is not None and site == "gradient":
            g = g * keep
        m = m + (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        change = step_size * m / (v.sqrt() / root_correction + eps)
        if weight_decay != 0:
            change = change + lr * weight_decay * p
        if keep is not None and site == "update":
            change = change * keep
        before = None if bits is None else gates(param, thresholds[index])
        param.copy_(p - change)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
        if bits is not None:
            gate = gates(param, thresholds[index])
            bits.copy_(pack(gate))
            if flips is not None:
                flips[index] += (gate != before).sum()
