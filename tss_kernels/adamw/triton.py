"""Soft-masked AdamW in Triton: one launch updates every tensor of a list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tss_kernels.adamw.table import contiguous
from tss_kernels.adamw.triton_kernels import adamw_kernel
from tss_kernels.backends.triton import launch

BLOCK = 1024
WARPS = 4
ALIGNMENT = 16  # bytes that one thread loads at once
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Entry(NamedTuple):
    """One parameter's tensors, all contiguous, and what its gates need: row length, threshold, address of the count."""

    param: torch.Tensor
    grad: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    importance: torch.Tensor | None
    packed: torch.Tensor | None
    threshold: float
    flips: int


@lru_cache(maxsize=8)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device, stream: int) -> torch.Tensor:
    """The rows as int64 (lines, tensors) on the device; kept, because addresses repeat from step to step.

    `stream` keeps each stream's copy apart: a table copied on one stream may not be there yet for another.
    """
    del stream
    table = torch.tensor(rows, dtype=torch.int64).t().contiguous()
    # From pinned memory the copy need not wait for the device.
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def _columns(entry: Entry) -> int:
    """The columns of a matrix whose gates are asked for and whose rows end within a byte, else 0."""
    return entry.param.shape[1] if entry.packed is not None and entry.param.shape[1] % 8 else 0


def _rows(group: list[Entry], gates: bool) -> tuple[list[tuple[int, ...]], int]:
    """The table's row of each entry and the number of blocks."""
    rows, blocks = [], 0
    bits = torch.tensor([entry.threshold for entry in group], dtype=torch.float32).view(torch.int32).tolist()
    for entry, threshold in zip(group, bits, strict=True):
        columns = _columns(entry)
        size = entry.param.numel() if columns == 0 else entry.param.shape[0] * triton.cdiv(columns, 8) * 8
        row = (*(0 if tensor is None else tensor.data_ptr() for tensor in entry[:5]), size, blocks)
        packed = 0 if entry.packed is None else entry.packed.data_ptr()
        rows.append((*row, packed, columns, threshold, entry.flips) if gates else row)
        blocks += triton.cdiv(size, BLOCK)
    return rows, blocks


def _launch(group: list[Entry], scalars: tuple[float, ...], update_site: bool, decay: bool) -> None:
    """Updates parameters on one device whose tensors agree in dtype."""
    gates = any(entry.packed is not None for entry in group)
    rows, blocks = _rows(group, gates)
    param, grad, exp_avg, exp_avg_sq = group[0][:4]
    importance = next((entry.importance for entry in group if entry.importance is not None), param)
    aligned = all(address % ALIGNMENT == 0 for row in rows for address in row[:5])
    stream = torch.cuda.current_stream(param.device).cuda_stream if param.is_cuda else 0
    launch(
        adamw_kernel, blocks, _table(tuple(rows), param.device, stream), len(rows), *scalars,
        UPDATE_SITE=update_site, DECAY=decay, GATES=gates, RAGGED=any(map(_columns, group)),
        PARAM=DTYPES[param.dtype], GRAD=DTYPES[grad.dtype], EXP_AVG=DTYPES[exp_avg.dtype],
        EXP_AVG_SQ=DTYPES[exp_avg_sq.dtype], IMPORTANCE=DTYPES[importance.dtype], ALIGNED=aligned,
        TENSORS=triton.next_power_of_2(len(rows)), BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """How a step is launched."""
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
    packed: Sequence[torch.Tensor | None] | None = None,
    thresholds: Sequence[float] = (),
    flips: torch.Tensor | None = None,
) -> None:
    """One AdamW step in place; all tensors that agree in device and dtypes are updated by one launch.

    site "gradient": grad * (1 - importance) enters Adam; "update": Adam's whole step, decay included, is scaled by
    (1 - importance). `step` counts from 1. Where `packed` has a tensor (of a float32 matrix), it becomes the gates of
    the new parameter at that threshold, and their changes are added to that entry of flips, int64. Raises RuntimeError
    under CUDA graph capture.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"a CUDA graph would replay step={step} forever: give step and lr as tensors (capturable=True)"
        )
    step_size = lr / (1 - beta1**step)
    root_correction = (1 - beta2**step) ** 0.5
    scalars = (lr * weight_decay, 1 - beta1, beta2, 1 - beta2, step_size, root_correction, eps)
    importance_dtype = next((tensor.dtype for tensor in importances if tensor is not None), torch.float32)
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    groups: dict[tuple[object, ...], list[Entry]] = defaultdict(list)
    for index, (param, grad, exp_avg, exp_avg_sq, importance, bits) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, importances, packed or [None] * len(params), strict=True)
    ):
        if param.numel() == 0:
            continue
        kind = importance_dtype if importance is None else importance.dtype
        count = 0 if flips is None else flips.data_ptr() + index * flips.stride(0) * flips.element_size()
        groups[param.device, param.dtype, grad.dtype, exp_avg.dtype, exp_avg_sq.dtype, kind].append(
            Entry(
                contiguous(param, copies),
                grad.contiguous(),
                contiguous(exp_avg, copies),
                contiguous(exp_avg_sq, copies),
                None if importance is None else importance.contiguous(),
                None if bits is None else contiguous(bits, copies),
                0.0 if bits is None else thresholds[index],
                count,
            )
        )
    for group in groups.values():
        _launch(group, tuple(map(float, scalars)), update_site=site == "update", decay=weight_decay != 0)
    for tensor, copy in copies:
        tensor.copy_(copy)
