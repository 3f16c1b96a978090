"""Small helpers on tensors that operations and backends share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

# Element types as csrc/common/dtype.h numbers them.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor's elements start; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor (..., features) as (rows, features), a view where one is possible."""
    if tensor.dim() == 2:
        return tensor
    rows = 1
    for size in tensor.shape[:-1]:
        rows *= size
    return tensor.reshape(rows, tensor.shape[-1])


def shaped_like(rows: torch.Tensor, leading: Sequence[int]) -> torch.Tensor:
    """The opposite of `rows_of`: (rows, features) as (*leading, features)."""
    return rows if len(leading) == 1 else rows.view(*leading, rows.shape[-1])


def empty_packed(scores: torch.Tensor) -> torch.Tensor:
    """Room for the gates of a matrix (out, in) at one bit each, on its device: uint8 (out, ceil(in / 8))."""
    return scores.new_empty((scores.shape[0], (scores.shape[1] + 7) // 8), dtype=torch.uint8)


def count_writes(tensors: Iterable[torch.Tensor]) -> None:
    """Tells autograd that an operator wrote to these tensors, which it does not find out from the schema."""
    if not torch.compiler.is_compiling():  # a compiled graph writes by operations that count
        torch.autograd.graph.increment_version(tensors)


def bank_of(bank: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The bank with each task's gates contiguous, and bytes from a task to the next; they may lie apart."""
    if not bank[:1].is_contiguous():
        bank = bank.contiguous()
    # The stride of a single task may be anything.
    return bank, bank.stride(0) if bank.shape[0] > 1 else bank.shape[1] * bank.shape[2]
