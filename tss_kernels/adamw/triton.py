"""Soft-masked AdamW in Triton: one launch updates every tensor of a list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tss_kernels.adamw.table import contiguous, refuse_capture, scalars_of
from tss_kernels.adamw.triton_kernels import adamw_kernel
from tss_kernels.backends.triton import launch

BLOCK = 1024
WARPS = 4
ALIGNMENT = 16  # bytes that one thread loads at once
DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
}


class Entry(NamedTuple):
    """One parameter's tensors, all contiguous."""

    param: torch.Tensor
    grad: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    importance: torch.Tensor | None


@lru_cache(maxsize=8)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device, stream: int) -> torch.Tensor:
    """Return the rows as int64 (lines, tensors) on the device; cached, because addresses repeat from step to step.

    `stream` is part of the cache key: a table copied on one stream may not be complete yet on another.
    """
    del stream
    table = torch.tensor(rows, dtype=torch.int64).t().contiguous()
    # A copy from pinned memory does not wait for the device.
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def _rows(group: list[Entry]) -> tuple[list[tuple[int, ...]], int]:
    """Return each entry's row of the table, and the number of blocks."""
    rows, blocks = [], 0
    for entry in group:
        size = entry.param.numel()
        rows.append((*(0 if tensor is None else tensor.data_ptr() for tensor in entry), size, blocks))
        blocks += triton.cdiv(size, BLOCK)
    return rows, blocks


def _launch(group: list[Entry], scalars: tuple[float, ...], update_site: bool, decay: bool) -> None:
    """Update parameters on one device whose tensors have the same dtypes."""
    rows, blocks = _rows(group)
    param, grad, exp_avg, exp_avg_sq = group[0][:4]
    importance = next((entry.importance for entry in group if entry.importance is not None), param)
    aligned = all(address % ALIGNMENT == 0 for row in rows for address in row[:5])
    stream = torch.cuda.current_stream(param.device).cuda_stream if param.is_cuda else 0
    launch(
        adamw_kernel, blocks, _table(tuple(rows), param.device, stream), len(rows), *scalars,
        UPDATE_SITE=update_site, DECAY=decay,
        PARAM=DTYPES[param.dtype], GRAD=DTYPES[grad.dtype], EXP_AVG=DTYPES[exp_avg.dtype],
        EXP_AVG_SQ=DTYPES[exp_avg_sq.dtype], IMPORTANCE=DTYPES[importance.dtype], ALIGNED=aligned,
        TENSORS=triton.next_power_of_2(len(rows)), BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how a step is launched."""
    del op, device, dtype, shape
    return f"blocks of {BLOCK} elements, {WARPS} warps, one launch for all tensors of a dtype"


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
) -> None:
    """Take one AdamW step in place; one launch updates all tensors with the same device and dtypes.

    site "gradient": grad * (1 - importance) enters Adam; "update": Adam's whole step, decay included, is scaled by
    (1 - importance). `step` counts from 1. Raises RuntimeError under CUDA graph capture.
    """
    refuse_capture(step)
    scalars = tuple(map(float, scalars_of(step, lr, beta1, beta2, eps, weight_decay)))
    importance_dtype = next((tensor.dtype for tensor in importances if tensor is not None), torch.float32)
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    groups: dict[tuple[object, ...], list[Entry]] = defaultdict(list)
    for param, grad, exp_avg, exp_avg_sq, importance in zip(
        params, grads, exp_avgs, exp_avg_sqs, importances, strict=True
    ):
        if param.numel() == 0:
            continue
        kind = importance_dtype if importance is None else importance.dtype
        groups[param.device, param.dtype, grad.dtype, exp_avg.dtype, exp_avg_sq.dtype, kind].append(
            Entry(
                contiguous(param, copies),
                grad.contiguous(),
                contiguous(exp_avg, copies),
                contiguous(exp_avg_sq, copies),
                None if importance is None else importance.contiguous(),
            )
        )
    for group in groups.values():
        _launch(group, scalars, update_site=site == "update", decay=weight_decay != 0)
    for tensor, copy in copies:
        tensor.copy_(copy)
