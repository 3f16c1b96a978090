"""Importance in Triton: mean and deviation in fixed order, then tanh and, for updates, the maximum in one pass."""

from __future__ import annotations

import torch
import triton

from tss_kernels.backends.triton import launch
from tss_kernels.importance.in_chunks import BLOCK, CHUNK_BLOCKS, cut, in_place, normalized, size_of, updated
from tss_kernels.importance.triton_kernels import accumulate_kernel, importance_kernel, statistics_kernel

WARPS = 4


def _run(raw: torch.Tensor, importance: torch.Tensor, per: str, update: bool) -> None:
    block = min(BLOCK, triton.next_power_of_2(size_of(raw, per)))  # elements that a program processes at a time
    groups, size, chunks, chunk = cut(raw, per, block)
    programs, partial = groups * chunks, raw
    if chunks > 1:
        partial = torch.empty((2, programs), dtype=torch.float64, device=raw.device)
        launch(statistics_kernel, programs, raw, partial, size, chunk, CHUNKS=chunks, BLOCK=block, num_warps=WARPS)
    launch(
        importance_kernel, programs,
        raw, importance, partial, size, chunk,
        UPDATE=update, CHUNKS=chunks, LANES=triton.next_power_of_2(chunks), BLOCK=block, num_warps=WARPS,
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
    new = new.to(total.dtype).contiguous()

    def write(whole: torch.Tensor) -> None:
        launch(
            accumulate_kernel, triton.cdiv(whole.numel(), BLOCK),
            whole, new, whole.numel(), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip

    in_place(total, write)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how an operation on importance is launched."""
    del device, dtype, shape
    passes = "" if op == "accumulate_importance_" else f", chunks of {CHUNK_BLOCKS} blocks or more, in float64"
    return f"blocks of {BLOCK} elements, {WARPS} warps{passes}"
