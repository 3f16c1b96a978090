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
    for index, (param, grad, exp_avg, exp_avg_sq, importance) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, importances, strict=True)
    ):
        bits = packed[index] if packed else None
        rows, columns = (1, param.numel()) if bits is None else param.shape
        written = [_contiguous(tensor, copies) for tensor in (param, exp_avg, exp_avg_sq)]
        grad = grad.contiguous()
        importance = None if importance is None else importance.contiguous()
        kept += (grad,) if importance is None else (grad, importance)
        kinds = (written[0], grad, written[1], written[2], importance)
        table += (
            *(0 if tensor is None else tensor.data_ptr() for tensor in kinds),
            sum(KINDS[tensor.dtype] << 4 * place for place, tensor in enumerate(kinds) if tensor is not None),
            rows,
            columns,
            0 if bits is None else _contiguous(bits, copies).data_ptr(),
            0 if bits is None or flips is None else flips.data_ptr() + 8 * index * flips.stride(0),
        )
        bounds.append(0.0 if bits is None else thresholds[index])
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
