"""Importance in C++: mean and deviation in float64 and in fixed order, then tanh and, where asked for, the maximum."""

from __future__ import annotations

import torch

from tss_kernels.backends.native import described, kernels
from tss_kernels.tensors import DTYPE_CODES


def _run(raw: torch.Tensor, target: torch.Tensor, per: str, update: bool) -> None:
    """Writes the importance of `raw`, or its maximum with what is there; both are contiguous."""
    count = raw.numel()
    if count == 0:
        return
    size = count if per == "tensor" else raw.shape[-1]
    kernels.importance(
        raw.data_ptr(), DTYPE_CODES[raw.dtype], target.data_ptr(), DTYPE_CODES[target.dtype], update, count // size,
        size, torch.get_num_threads(),
    )  # fmt: skip


def normalize_importance(raw: torch.Tensor, per: str) -> torch.Tensor:
    """I = |tanh((a - mean a) / (std a + 1e-6))|, mean and (population) deviation over the tensor or each row.

    raw (out, in) of any supported dtype, per "tensor" or "row"; computed in float64, returned as float32.
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
    target, other = total.contiguous(), new.to(total.dtype).contiguous()
    kernels.accumulate(
        target.data_ptr(), other.data_ptr(), DTYPE_CODES[target.dtype], target.numel(), torch.get_num_threads()
    )
    if target is not total:
        total.copy_(target)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """How an operation on importance runs."""
    del device, dtype, shape
    passes = "one pass" if op == "accumulate_importance_" else "statistics of blocks in float64, then one pass"
    return described(passes)
