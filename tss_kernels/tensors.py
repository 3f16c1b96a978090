"""Small tensor helpers shared by operations and backends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

# Element types as csrc/common/dtype.h numbers them.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
# Activations as csrc/cpu/kernels.h and csrc/cuda/operations.h number them.
ACTIVATION_CODES = {"relu": 0, "gelu": 1, "silu": 2, "tanh": 3}

# make_fx may trace before the dispatcher; the stack of dispatch modes does not show it, this key does.
PRE_DISPATCH, is_included = torch._C.DispatchKey.PreDispatch, torch._C._dispatch_tls_is_dispatch_key_included


def address(tensor: torch.Tensor | None) -> int:
    """Return the address of a tensor's first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """Reshape a tensor (..., features) to (rows, features), as a view where possible."""
    if tensor.dim() == 2:
        return tensor
    rows = 1
    for size in tensor.shape[:-1]:
        rows *= size
    return tensor.reshape(rows, tensor.shape[-1])


def shaped_like(rows: torch.Tensor, leading: Sequence[int]) -> torch.Tensor:
    """Reshape (rows, features) to (*leading, features): the inverse of `rows_of`."""
    return rows if len(leading) == 1 else rows.view(*leading, rows.shape[-1])


def empty_packed(scores: torch.Tensor) -> torch.Tensor:
    """Allocate packed gates for a matrix (out, in), on its device: uint8 (out, ceil(in / 8))."""
    return scores.new_empty((scores.shape[0], (scores.shape[1] + 7) // 8), dtype=torch.uint8)


def count_writes(tensors: Iterable[torch.Tensor]) -> None:
    """Tell autograd that an operator wrote to these tensors, which it cannot find out from the schema."""
    if not torch.compiler.is_compiling():  # the operations of a compiled graph count their own writes
        torch.autograd.graph.increment_version(tensors)


def is_watched() -> bool:
    """Return whether a dispatch mode or a trace sees each operation: what bypasses the dispatcher would be missed."""
    return bool(torch._C._len_torch_dispatch_stack() or is_included(PRE_DISPATCH) or torch._C._get_tracing_state())


def bank_of(bank: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the bank with each task's gates contiguous, and the bytes from task to task; gaps are allowed."""
    if not bank[:1].is_contiguous():
        bank = bank.contiguous()
    # The stride of a single task may be anything.
    return bank, bank.stride(0) if bank.shape[0] > 1 else bank.shape[1] * bank.shape[2]
