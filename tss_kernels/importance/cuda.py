"""Importance in CUDA C++: mean and deviation in fixed order, then tanh and, if asked for, the maximum in one pass."""

from __future__ import annotations

import torch

from tss_kernels.backends.cuda import kernels, target
from tss_kernels.tensors import DTYPE_CODES, address

CHUNK = 2048  # elements of the smallest chunk
CHUNKS = 1024  # at most, of all groups together, unless there are more groups


def cut(elements: int, size: int) -> tuple[int, int, int]:
    """Groups of `size` elements, chunks of each, elements of a chunk: of shapes alone, so that sums have one order."""
    groups = elements // size
    share = -(-size // max(1, CHUNKS // groups))
    chunk = max(CHUNK, -(-share // CHUNK) * CHUNK)
    return groups, -(-size // chunk), chunk


def _run(raw: torch.Tensor, importance: torch.Tensor, per: str, update: bool) -> None:
    """Writes the importance of `raw`, or its maximum with what is there; both are contiguous."""
    if raw.numel() == 0:
        return
    size = raw.numel() if per == "tensor" else raw.shape[-1]
    groups, chunks, chunk = cut(raw.numel(), size)
    partial = None
    if chunks > 1:
        partial = torch.empty((2, groups, chunks), dtype=torch.float64, device=raw.device)
    kernels(raw.device).importance(
        raw.data_ptr(), DTYPE_CODES[raw.dtype], importance.data_ptr(), DTYPE_CODES[importance.dtype], address(partial),
        groups, size, chunk, update, *target(raw.device),
    )  # fmt: skip


def normalize_importance(raw: torch.Tensor, per: str) -> torch.Tensor:
    """I = |tanh((a - mean a) / (std a + 1e-6))|, mean and (population) deviation over the tensor or each row.

    raw (out, in) of any supported dtype or float64, per "tensor" or "row"; computed in float64, returned as float32.
    """
    importance = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    _run(raw.contiguous(), importance, per, update=False)
    return importance


def update_importance_(total: torch.Tensor, raw: torch.Tensor, per: str) -> None:
    """total <- max(total, normalize_importance(raw, per)) in place; NaN in either stays visible."""
    whole = total.contiguous()
    _run(raw.contiguous(), whole, per, update=True)
    if whole is not total:
        total.copy_(whole)


def accumulate_importance_(total: torch.Tensor, new: torch.Tensor) -> None:
    """total <- max(total, new), elementwise and in place; NaN in either stays visible."""
    whole, new = total.contiguous(), new.contiguous()
    kernels(total.device).accumulate_importance(
        whole.data_ptr(),
        DTYPE_CODES[whole.dtype],
        new.data_ptr(),
        DTYPE_CODES[new.dtype],
        whole.numel(),
        *target(total.device),
    )
    if whole is not total:
        total.copy_(whole)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """How an operation on importance is launched."""
    del device, dtype, shape
    passes = "" if op == "accumulate_importance_" else f", chunks of {CHUNK} elements or more, in float64"
    return f"blocks of 256 threads{passes}"
