"""Importance in CUDA C++: mean and deviation in fixed order, then tanh and, for updates, the maximum in one pass."""

from __future__ import annotations

import torch

from tss_kernels.backends.cuda import kernels, target
from tss_kernels.importance.in_chunks import BLOCK, CHUNK_BLOCKS, cut, in_place, normalized, updated
from tss_kernels.tensors import DTYPE_CODES, address


def _run(raw: torch.Tensor, importance: torch.Tensor, per: str, update: bool) -> None:
    groups, size, chunks, chunk = cut(raw, per)
    partial = torch.empty((2, groups, chunks), dtype=torch.float64, device=raw.device) if chunks > 1 else None
    kernels(raw.device).importance(
        raw.data_ptr(), DTYPE_CODES[raw.dtype], importance.data_ptr(), DTYPE_CODES[importance.dtype], address(partial),
        groups, size, chunk, update, *target(raw.device),
    )  # fmt: skip


def normalize_importance(raw: torch.Tensor, per: str) -> torch.Tensor:
    """Compute I = |tanh((a - mean a) / (std a + 1e-6))|, mean and (population) std over the tensor or each row.

    raw (out, in) of any supported dtype or float64, per "tensor" or "row"; computed in float64, returned as float32.
    """
    return normalized(_run, raw, per)


def update_importance_(total: torch.Tensor, raw: torch.Tensor, per: str) -> None:
    """Set total to max(total, normalize_importance(raw, per)) in place; NaN in either stays visible."""
    updated(_run, total, raw, per)


def accumulate_importance_(total: torch.Tensor, new: torch.Tensor) -> None:
    """Set total to max(total, new), elementwise and in place; NaN in either stays visible."""
    new = new.contiguous()

    def write(whole: torch.Tensor) -> None:
        kernels(whole.device).accumulate_importance(
            whole.data_ptr(), DTYPE_CODES[whole.dtype], new.data_ptr(), DTYPE_CODES[new.dtype], whole.numel(),
            *target(whole.device),
        )  # fmt: skip

    in_place(total, write)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how an operation on importance is launched."""
    del device, dtype, shape
    passes = (
        "" if op == "accumulate_importance_" else f", chunks of {CHUNK_BLOCKS * BLOCK} elements or more, in float64"
    )
    return f"blocks of 256 threads{passes}"
