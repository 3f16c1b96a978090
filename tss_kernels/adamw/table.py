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
