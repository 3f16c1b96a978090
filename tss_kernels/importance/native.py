"""Importance in C++: mean and deviation in float64 and in fixed order, then tanh and, for updates, the maximum."""

from __future__ import annotations

import torch

from tss_kernels.backends.native import described, kernels
from tss_kernels.importance.in_chunks import in_place, normalized, size_of, updated
from tss_kernels.tensors import DTYPE_CODES


def _run(raw: torch.Tensor, importance: torch.Tensor, per: str, update: bool) -> None:
    size = size_of(raw, per)
    kernels.importance(
        raw.data_ptr(), DTYPE_CODES[raw.dtype], importance.data_ptr(), DTYPE_CODES[importance.dtype], update,
        raw.numel() // size, size, torch.get_num_threads(),
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
        kernels.accumulate(
            whole.data_ptr(), new.data_ptr(), DTYPE_CODES[whole.dtype], whole.numel(), torch.get_num_threads()
        )

    in_place(total, write)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how an operation on importance runs."""
    del device, dtype, shape
    passes = "one pass" if op == "accumulate_importance_" else "statistics of blocks in float64, then one pass"
    return described(passes)
