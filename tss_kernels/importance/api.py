"""normalize_importance, accumulate_importance_ and update_importance_: checks and the registered operators."""

from __future__ import annotations

import torch

from tss_kernels.backends.dispatch import implementation, select
from tss_kernels.operators import implement
from tss_kernels.overlap import check_no_overlap
from tss_kernels.tensors import count_writes
from tss_kernels.validation import check_choice, check_device, check_floating


def _normalize(raw: torch.Tensor, per: str, backend: str) -> torch.Tensor:
    return implementation("update_importance_", backend).normalize_importance(raw, per)


def _accumulate(total: torch.Tensor, new: torch.Tensor, backend: str) -> None:
    implementation("update_importance_", backend).accumulate_importance_(total, new)


def _update(total: torch.Tensor, raw: torch.Tensor, per: str, backend: str) -> None:
    implementation("update_importance_", backend).update_importance_(total, raw, per)


_normalize_operator = implement("normalize_importance", _normalize)
_accumulate_operator = implement("accumulate_importance_", _accumulate)
_update_operator = implement("update_importance_", _update)


def check_raw(raw: torch.Tensor, per: str) -> None:
    """Check a raw importance and how it is to be normalized. Raises TypeError and ValueError."""
    check_choice("per", per, ("tensor", "row"))
    check_floating("raw importance", raw)
    if raw.dim() == 0:
        raise ValueError("raw importance must have at least one dimension but is a single number: pass a whole layer's")


def _check_pair(total: torch.Tensor, name: str, other: torch.Tensor) -> None:
    """Check an importance that is updated in place, and the tensor it is updated with. Raises TypeError, ValueError."""
    check_floating("total", total)
    check_floating(name, other)
    if total.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "total requires a gradient, but an update in place has none: pass total.detach(), or call this under "
            "torch.no_grad()"
        )
    if total.shape != other.shape:
        raise ValueError(
            f"importances must have one shape, but total has {tuple(total.shape)}, {name} {tuple(other.shape)}: "
            "pass those of one layer"
        )
    check_device(name, other, total)


def check_accumulation(total: torch.Tensor, new: torch.Tensor) -> None:
    """Check the arguments of accumulate_importance_. Raises TypeError and ValueError."""
    _check_pair(total, "new", new)
    check_no_overlap({"total": total}, {"new": new})


def check_update(total: torch.Tensor, raw: torch.Tensor, per: str) -> None:
    """Check the arguments of update_importance_. Raises TypeError and ValueError."""
    check_raw(raw, per)
    _check_pair(total, "raw", raw)
    check_no_overlap({"total": total}, {"raw": raw}, elementwise=False)  # the statistics depend on all of raw


def normalize_importance(raw: torch.Tensor, *, per: str = "tensor") -> torch.Tensor:
    """Normalize a raw importance a to I = abs(tanh((a - mean a) / (std a + 1e-6))), as in TSS (arXiv 2310.09436).

    Args:
        raw: (out, in), floating: the mean over batches of (dL/ds) * g.
        per: "tensor" or "row": over which mean and population standard deviation are computed.

    Returns:
        float32 (out, in) in [0, 1].

    Raises:
        TypeError, ValueError: names the argument and what it should be.
    """
    check_raw(raw, per)
    backend = select("normalize_importance", raw.device, raw.dtype)
    return _normalize_operator(raw.detach().contiguous(), per, backend)


def accumulate_importance_(total: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Set total to max(total, new), elementwise and in place; NaN in either stays visible.

    Args:
        total, new: floating, of one shape, on one device; new may be total itself, else they must not share memory.

    Returns:
        total.

    Raises:
        TypeError, ValueError: names the argument and what it should be.
    """
    check_accumulation(total, new)
    if new is total:
        return total  # the maximum of an element and itself; compiled kernels take two tensors that do not overlap
    _accumulate_operator(total, new, select("accumulate_importance_", total.device, total.dtype))
    count_writes([total])
    return total


def update_importance_(total: torch.Tensor, raw: torch.Tensor, *, per: str = "tensor") -> torch.Tensor:
    """Set total to max(total, normalize_importance(raw, per=per)) in place; NaN in either stays visible.

    Args:
        total: floating, of raw's shape and device.
        raw: (out, in), floating; must not share memory with total.
        per: as for `normalize_importance`.

    Returns:
        total.

    Raises:
        TypeError, ValueError: names the argument and what it should be.
    """
    check_update(total, raw, per)
    backend = select("update_importance_", total.device, total.dtype)
    _update_operator(total, raw.detach().contiguous(), per, backend)
    count_writes([total])
    return total
