"""Parameter lists for the compiled backends: a flat table of numbers, so that one call handles all tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tss_kernels.tensors import DTYPE_CODES

COLUMNS = 7  # numbers per parameter
KINDS_AT = 5


class Table(NamedTuple):
    """Seven numbers per parameter, and the copies that must outlive the call.

    The numbers are the addresses of param, grad, exp_avg, exp_avg_sq and importance (or 0), their types at four bits
    each, and the number of elements.
    """

    numbers: list[int]
    copies: list[tuple[torch.Tensor, torch.Tensor]]
    kept: list[torch.Tensor]

    def put_back(self) -> None:
        """Copy the changed contiguous copies back to their original tensors."""
        for tensor, copy in self.copies:
            tensor.copy_(copy)


def refuse_capture(step: float) -> None:
    """Raise RuntimeError under CUDA graph capture, which would replay this step number forever."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"a CUDA graph would replay step={step} forever: give step and lr as tensors (capturable=True)"
        )


class Scalars(NamedTuple):
    """The numbers of one step, computed in float64, in the order in which kernels take them."""

    decay: float
    take1: float
    beta2: float
    take2: float
    step_size: float
    root_correction: float
    eps: float


def scalars_of(step: float, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> Scalars:
    """Return the numbers of step `step`, which counts from 1."""
    return Scalars(
        lr * weight_decay, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, eps
    )


def contiguous(tensor: torch.Tensor, copies: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the tensor, or a contiguous copy, recorded in `copies` to be copied back."""
    if tensor.is_contiguous():
        return tensor
    copies.append((tensor, tensor.contiguous()))
    return copies[-1][1]


def _read(tensor: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
    """Return the tensor, or a contiguous copy that `kept` keeps alive."""
    if tensor.is_contiguous():
        return tensor
    kept.append(tensor.contiguous())
    return kept[-1]


def table_of(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    importances: Sequence[torch.Tensor | None],
) -> Table:
    """Build the table of these lists."""
    table = Table([], [], [])
    numbers, copies, kept = table
    for p, g, m, v, importance in zip(params, grads, exp_avgs, exp_avg_sqs, importances, strict=True):
        # Written out instead of looping: with many small tensors a step spends its time here.
        p, m, v, g = contiguous(p, copies), contiguous(m, copies), contiguous(v, copies), _read(g, kept)
        kinds = (
            DTYPE_CODES[p.dtype] | DTYPE_CODES[g.dtype] << 4 | DTYPE_CODES[m.dtype] << 8 | DTYPE_CODES[v.dtype] << 12
        )
        soft = 0
        if importance is not None:
            importance = _read(importance, kept)
            soft, kinds = importance.data_ptr(), kinds | DTYPE_CODES[importance.dtype] << 16
        numbers += (p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), soft, kinds, p.numel())
    return table
