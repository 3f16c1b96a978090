"""Importance in Triton: mean and deviation in fixed order, then tanh and, where asked for, the maximum in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from tss_kernels.backends.triton import launch
from tss_kernels.importance.triton_kernels import accumulate_kernel, importance_kernel, statistics_kernel

BLOCK = 1024  # elements that a program takes at a time
WARPS = 4
CHUNK_BLOCKS = 2  # blocks of the smallest chunk
PROGRAMS = 1024  # as many chunks at most, unless there are more groups


class Cut(NamedTuple):
    """How the elements are shared out: groups of `size`, each in `chunks` of `chunk` elements, taken by `block`."""

    groups: int
    size: int
    chunks: int
    chunk: int
    block: int


def cut(shape: tuple[int, ...], per: str) -> Cut:
    """A function of the shape (without a 0) alone, so that sums always have the same order."""
    elements = torch.Size(shape).numel()
    size = elements if per == "tensor" else shape[-1]
    groups = elements // size
    block = min(BLOCK, triton.next_power_of_2(size))
    share = triton.cdiv(triton.cdiv(size, block), max(1, PROGRAMS // groups))
    chunk = max(CHUNK_BLOCKS, share) * block
    return Cut(groups, size, triton.cdiv(size, chunk), chunk, block)


def _run(raw: torch.Tensor, importance: torch.Tensor, per: str, update: bool) -> None:
    """Writes the importance of `raw`, or its maximum with what is there; both are contiguous."""
    if raw.numel() == 0:
        return
    groups, size, chunks, chunk, block = cut(tuple(raw.shape), per)
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
    """I = |tanh((a - mean a) / (std a + 1e-6))|, mean and (population) deviation over the tensor or each row.

    raw (out, in) of any supported dtype or float64, per "tensor" or "row"; computed in float64, returned as float32.
    """
    importance = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    _run(raw.contiguous(), importance, per, update=False)
    return importance


def update_importance_(total: torch.Tensor, raw: torch.Tensor, per: str) -> None:
    """total <- max(total, normalize_importance(raw, per)) in place; NaN in either stays visible."""
    target = total.contiguous()
    _run(raw.contiguous(), target, per, update=True)
    if target is not total:
        total.copy_(target)


def accumulate_importance_(total: torch.Tensor, new: torch.Tensor) -> None:
    """total <- max(total, new), elementwise and in place; NaN in either stays visible."""
    if total.numel() == 0:
        return
    target = total.contiguous()
    launch(
        accumulate_kernel, triton.cdiv(total.numel(), BLOCK),
        target, new.to(total.dtype).contiguous(), total.numel(), BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    if target is not total:
        total.copy_(target)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """How an operation on importance is launched."""
    del device, dtype, shape
    passes = "" if op == "accumulate_importance_" else f", chunks of {CHUNK_BLOCKS} blocks or more, in float64"
    return f"blocks of {BLOCK} elements, {WARPS} warps{passes}"
