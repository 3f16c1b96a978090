"""What a list of parameters looks like to the compiled backends: a flat table of numbers, one call for all tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tss_kernels.tensors import DTYPE_CODES

COLUMNS = 10  # numbers of each parameter


class Table(NamedTuple):
    """Ten numbers of each parameter: the addresses of param, grad, exp_avg, exp_avg_sq and importance (or 0), their
    types at four bits each, rows and columns (1 and all elements where no gates are wanted), the addresses of packed
    gates and of the count of flips (or 0). And a threshold of each, and the copies that must outlive the call."""

    numbers: list[int]
    thresholds: list[float]
    copies: list[tuple[torch.Tensor, torch.Tensor]]
    kept: list[torch.Tensor]

    def put_back(self) -> None:
        """Writes what was changed in copies to the tensors that they stand for."""
        for tensor, copy in self.copies:
            tensor.copy_(copy)


def contiguous(tensor: torch.Tensor, copies: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
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


def table_of(
    lists: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor]],
    importances: Sequence[torch.Tensor | None],
    packed: Sequence[torch.Tensor | None] | None,
    thresholds: Sequence[float],
    flips: torch.Tensor | None,
) -> Table:
    """The table of lists of parameters, gradients and both averages, and of what belongs to each."""
    table = Table([], [], [], [])
    numbers, bounds, copies, kept = table
    for index, (p, g, m, v, importance) in enumerate(zip(*lists, importances, strict=True)):
        # Written out: a step of many small tensors spends its time here.
        p, m, v = contiguous(p, copies), contiguous(m, copies), contiguous(v, copies)
        g = _read(g, kept)
        kinds = (
            DTYPE_CODES[p.dtype] | DTYPE_CODES[g.dtype] << 4 | DTYPE_CODES[m.dtype] << 8 | DTYPE_CODES[v.dtype] << 12
        )
        soft = 0
        if importance is not None:
            importance = _read(importance, kept)
            soft, kinds = importance.data_ptr(), kinds | DTYPE_CODES[importance.dtype] << 16
        numbers += (p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), soft, kinds)
        bits = packed[index] if packed else None
        if bits is None:
            numbers += (1, p.numel(), 0, 0)
            bounds.append(0.0)
            continue
        count = 0 if flips is None else flips.data_ptr() + 8 * index * flips.stride(0)
        numbers += (*p.shape, contiguous(bits, copies).data_ptr(), count)
        bounds.append(thresholds[index])
    return table
