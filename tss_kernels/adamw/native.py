"""Soft-masked AdamW in C++: one call and one pass over memory for every tensor of a list."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tss_kernels.native import KINDS, described, kernels

Copies = list[tuple[torch.Tensor, torch.Tensor]]


def _contiguous(tensor: torch.Tensor, copies: Copies) -> torch.Tensor:
    """The tensor, or a contiguous copy that is noted beside it to be copied back."""
    if tensor.is_contiguous():
        return tensor
    copies.append((tensor, tensor.contiguous()))
    return copies[-1][1]


def _read(tensor: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
    """The tensor, or a contiguous copy that is kept in the list."""
    if tensor.is_contiguous():
        return tensor
    kept.append(tensor.contiguous())
    return kept[-1]


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
    """One AdamW step in place, as the reference's and with its bits; the dtypes of a parameter's tensors may differ.

    site "gradient": grad * (1 - importance) enters Adam; "update": Adam's whole step, decay included, is scaled by
    (1 - importance). `step` counts from 1. Where `packed` has a tensor (of a float32 matrix), it becomes the gates of
    the new parameter at that threshold, and their changes are added to that entry of flips, int64.
    """
    copies: Copies = []
    kept: list[torch.Tensor] = []  # what is read from copies lives until the call is over
    table: list[int] = []
    bounds: list[float] = []
    for index, (p, g, m, v, importance) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, importances, strict=True)
    ):
        # Written out: a step of many small tensors spends its time here.
        p, m, v = _contiguous(p, copies), _contiguous(m, copies), _contiguous(v, copies)
        g = _read(g, kept)
        kinds = KINDS[p.dtype] | KINDS[g.dtype] << 4 | KINDS[m.dtype] << 8 | KINDS[v.dtype] << 12
        soft = 0
        if importance is not None:
            importance = _read(importance, kept)
            soft, kinds = importance.data_ptr(), kinds | KINDS[importance.dtype] << 16
        table += (p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), soft, kinds)
        bits = packed[index] if packed else None
        if bits is None:
            table += (1, p.numel(), 0, 0)
            bounds.append(0.0)
            continue
        count = 0 if flips is None else flips.data_ptr() + 8 * index * flips.stride(0)
        table += (*p.shape, _contiguous(bits, copies).data_ptr(), count)
        bounds.append(thresholds[index])
    kernels.adamw(
        table, bounds, lr * weight_decay, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step),
        (1 - beta2**step) ** 0.5, eps, site == "update", weight_decay != 0, torch.get_num_threads(),
    )  # fmt: skip
    for tensor, copy in copies:
        tensor.copy_(copy)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """How a step runs."""
    del op, device, dtype, shape
    return described("one pass over all tensors")
