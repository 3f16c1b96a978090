"""Importance: checks and registered operators."""

from __future__ import annotations

from typing import Literal

import torch

from tss_kernels import checks, dispatch
from tss_kernels.operators import register


def _normalize(raw: torch.Tensor, per: str, backend: str) -> torch.Tensor:
    return dispatch.load("normalize_importance", backend).normalize_importance(raw, per)


def _normalize_fake(raw: torch.Tensor, per: str, backend: str) -> torch.Tensor:
    return torch.empty_like(raw)


def _accumulate(total: torch.Tensor, new: torch.Tensor, backend: str) -> None:
    dispatch.load("accumulate_importance_", backend).accumulate_importance_(total, new)


def _accumulate_fake(total: torch.Tensor, new: torch.Tensor, backend: str) -> None:
    return None


_normalize_op = register(
    "normalize_importance(Tensor raw, str per, str backend) -> Tensor", _normalize, _normalize_fake
)
_accumulate_op = register(
    "accumulate_importance_(Tensor(a!) total, Tensor new, str backend) -> ()", _accumulate, _accumulate_fake
)


def normalize_importance(raw: torch.Tensor, *, per: Literal["tensor", "row"] = "tensor") -> torch.Tensor:
    """I = |tanh((raw - mean raw) / (std raw + 1e-6))| (TSS, normalised importance), in [0, 1].

    Args:
        raw: (out, in), floating: the mean over batches of (dL/ds) * gate.
        per: take mean and population standard deviation over the whole tensor, or over each row.

    Returns:
        (out, in) of raw's dtype; all zeros where all of raw is equal.

    Raises:
        ValueError: an unknown `per`.
    """
    if per not in ("tensor", "row"):
        raise ValueError(f"normalize_importance: per must be 'tensor' or 'row', got {per!r}")
    if raw.numel() == 0:
        return raw.clone()
    return _normalize_op(raw, per, dispatch.backend_for("normalize_importance", raw.device.type, raw.dtype))


def accumulate_importance_(total: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """total <- max(total, new), elementwise and in place; returns total.

    Args:
        total: (out, in), the importance of all tasks so far.
        new: (out, in), the importance of the task just learned.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: dtypes that differ.
    """
    checks.check_same_shape("accumulate_importance_", "new", new, "total", total)
    checks.check_same_device("accumulate_importance_", total=total, new=new)
    if total.dtype != new.dtype:
        raise TypeError(f"accumulate_importance_: total and new must share a dtype, got {total.dtype} and {new.dtype}")
    _accumulate_op(total, new, dispatch.backend_for("accumulate_importance_", total.device.type, total.dtype))
    return total
