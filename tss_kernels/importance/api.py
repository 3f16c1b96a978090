"""normalize_importance and accumulate_importance_: checks and the registered operators."""

from __future__ import annotations

import torch

from tss_kernels.checks import check_choice, check_device
from tss_kernels.dispatch import implementation, select
from tss_kernels.operators import implement


def _normalize(raw: torch.Tensor, per: str, backend: str) -> torch.Tensor:
    return implementation("importance", backend).normalize_importance(raw, per)


def _accumulate(total: torch.Tensor, new: torch.Tensor, backend: str) -> None:
    implementation("importance", backend).accumulate_importance_(total, new)


_normalize_operator = implement("normalize_importance", _normalize)
_accumulate_operator = implement("accumulate_importance_", _accumulate)


def normalize_importance(raw: torch.Tensor, *, per: str = "tensor") -> torch.Tensor:
    """I = |tanh((a - mean a) / (std a + 1e-6))| of a raw importance a, by TSS (arXiv 2310.09436).

    raw (out, in), floating: the mean over batches of (dL/ds) * g. per "tensor" or "row": what mean and population
    deviation are taken over. Returns float32 (out, in) in [0, 1]. Raises ValueError, TypeError.
    """
    check_choice("per", per, ("tensor", "row"))
    if not raw.dtype.is_floating_point:
        raise TypeError(f"raw importance must have a floating dtype but has {raw.dtype}: convert it with .float()")
    if raw.dim() == 0:
        raise ValueError("raw importance must have at least one dimension but is a single number: pass a whole layer's")
    backend = select("normalize_importance", raw.device, raw.dtype)
    return _normalize_operator(raw.detach().contiguous(), per, backend)


def accumulate_importance_(total: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """total <- max(total, new), elementwise and in place; returns total. NaN in either stays visible.

    total, new: one shape, floating, one device. Raises ValueError, TypeError.
    """
    if total.shape != new.shape:
        raise ValueError(f"importances must have one shape, but total has {tuple(total.shape)}, new {tuple(new.shape)}")
    if not (total.dtype.is_floating_point and new.dtype.is_floating_point):
        raise TypeError(f"importances must have floating dtypes, but total has {total.dtype} and new {new.dtype}")
    check_device("new", new, total)
    _accumulate_operator(total, new, select("accumulate_importance_", total.device, total.dtype))
    return total
