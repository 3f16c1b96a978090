"""The gated linear map as PyTorch's own linear with W * g: in eager mode on the CPU, where PyTorch multiplies anyway.

Autograd's own nodes then run both products of the backward pass, by the W * g of the forward pass; one node of ours
between W * g and the scores turns its gradient into theirs. Nothing here passes PyTorch's dispatcher twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from tss_kernels.dispatch import forced_backend, implementation
from tss_kernels.gates.scores import Scores
from tss_kernels.operators import rows_of, shaped_like
from tss_kernels.watched import Frozen, plain, undisturbed

# In these PyTorch's product dYᵀ x has the precision that the scores' gradient is summed in.
WIDE = (torch.float32, torch.float64)


class _Entry(NamedTuple):
    """W * g, and what must be as it was for it to hold."""

    masked: torch.Tensor
    weight: torch.Tensor
    weight_state: tuple[int, ...]
    packed: torch.Tensor
    packed_version: int


class _Fit(NamedTuple):
    """Tensors of a layer that were checked, and may be used this way; the weight's state tells if they still are."""

    weight: torch.Tensor
    gates: torch.Tensor
    bias: torch.Tensor | None
    importance: torch.Tensor | None
    weight_state: tuple[int, ...]
    dtype: torch.dtype
    in_features: int


class KeptProduct:
    """Room of a layer for the W * g that it used last; a copy of it and what is read from a file are empty.

    Only of weights that are `Frozen`, whose writes are seen.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None
        self._fit: _Fit | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptProduct, ()

    def find(self, weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor | None:
        """W * g of these gates if it is here and neither was written to since."""
        entry = self._entry
        if (
            entry is None
            or entry.packed is not packed
            or entry.weight is not weight
            or entry.packed_version != packed._version
            or entry.weight_state != weight.state()  # type: ignore[attr-defined]
        ):
            return None
        return entry.masked

    def keep(self, weight: torch.Tensor, packed: torch.Tensor, masked: torch.Tensor) -> None:
        """Remember W * g, unless a backward pass could not hold it."""
        if isinstance(weight, Frozen) and not (masked.is_inference() or packed.is_inference() or weight.is_inference()):
            self._entry = _Entry(masked, weight, weight.state(), packed, packed._version)

    def fitted(
        self, weight: torch.Tensor, gates: torch.Tensor, bias: torch.Tensor | None, importance: torch.Tensor | None
    ) -> None:
        """These tensors were checked, and `composes` was true of them. gates: scores or packed."""
        if isinstance(weight, Frozen) and not weight.is_inference():
            self._fit = _Fit(weight, gates, bias, importance, weight.state(), weight.dtype, weight.shape[1])

    def masked_again(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        gates: torch.Tensor,
        bias: torch.Tensor | None,
        importance: torch.Tensor | None,
        threshold: float,
    ) -> torch.Tensor | None:
        """W * g for a call like one before, by gates that are known; None if anything has to be looked at anew."""
        if not undisturbed():
            return None
        fit = self._fit
        if (
            fit is None
            or fit.weight is not weight
            or fit.gates is not gates
            or fit.bias is not bias
            or fit.importance is not importance
            or x.dtype is not fit.dtype
            or x.dim() < 2
            or x.shape[-1] != fit.in_features
            or weight.requires_grad
            or forced_backend() is not None
            or torch._C._is_any_autocast_enabled()
            or fit.weight_state != weight.state()  # type: ignore[attr-defined]
        ):
            return None
        packed = gates.kept_gates(threshold) if isinstance(gates, Scores) else gates
        entry = self._entry
        if (
            entry is not None
            and packed is not None
            and entry.packed is packed
            and entry.weight is weight
            and entry.weight_state == fit.weight_state
            and entry.packed_version == packed._version
        ):
            return entry.masked
        # Gates of another tensor's making have to be read again, and other scores to be compared.
        return masked_by_gates(weight, packed, self) if isinstance(gates, Scores) and packed is not None else None


def composes(
    backend: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    gates: torch.Tensor | None,
    importance: torch.Tensor | None = None,
) -> bool:
    """Whether these arguments, which fit together, may go this way; gates: scores or packed. x may be of any class."""
    return (
        backend == "native"
        and undisturbed()
        and x.dtype in WIDE
        and x.dim() >= 2
        and not weight.requires_grad
        and weight.is_contiguous()
        and plain(weight)
        and plain(gates)
        and plain(importance)
    )


def masked_by_scores(
    weight: torch.Tensor, scores: torch.Tensor, threshold: float, kept: KeptProduct | None = None
) -> torch.Tensor:
    """W * g by the gates that the scores keep, or by comparing them; no gradient."""
    native = implementation("gated_linear", "native")
    if not isinstance(scores, Scores):
        return native.masked_by_scores(weight, scores, threshold, None)
    packed = scores.kept_gates(threshold)
    if packed is not None:
        return masked_by_gates(weight, packed, kept)
    packed = native.empty_packed(weight)
    masked = native.masked_by_scores(weight, scores, threshold, packed)
    scores.keep_gates(threshold, packed)
    if kept is not None:
        kept.keep(weight, packed, masked)
    return masked


def masked_by_gates(weight: torch.Tensor, packed: torch.Tensor, kept: KeptProduct | None = None) -> torch.Tensor:
    """W * g by packed gates; no gradient."""
    masked = None if kept is None else kept.find(weight, packed)
    if masked is None:
        masked = implementation("gated_linear", "native").masked_by_bits(weight, packed)
        if kept is not None:
            kept.keep(weight, packed, masked)
    return masked


class _Trained(torch.autograd.Function):
    """W * g as a function of the scores: its value is given, its gradient goes straight through to them."""

    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, masked: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, importance)
        return masked.detach()

    @staticmethod
    def backward(ctx: Any, product: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (_differentiated_once if torch.is_grad_enabled() else _scores_grad)(ctx, product)


def _scores_grad(ctx: Any, product: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    weight, importance = ctx.saved_tensors
    return implementation("gated_linear", "native").scores_grad_of(product, weight, importance), None, None, None


_differentiated_once = once_differentiable(_scores_grad)
# Function.apply without its questions about transforms, which `undisturbed` has answered.
_trained = super(torch.autograd.Function, _Trained).apply  # type: ignore[misc]


def trained(
    scores: torch.Tensor | None, masked: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """W * g with the scores' gradient where one is to be recorded."""
    if scores is None or not scores.requires_grad or not torch.is_grad_enabled():
        return masked
    return _trained(scores, masked, weight, importance)


def product(x: torch.Tensor, masked: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """PyTorch's linear, always as one product of two matrices."""
    if x.dim() == 2 or x.is_contiguous():
        return torch.nn.functional.linear(x, masked, bias)
    return shaped_like(torch.nn.functional.linear(rows_of(x), masked, bias), x.shape[:-1])
