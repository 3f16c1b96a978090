"""gated_linear and packed_linear: the product by scores or by packed gates, its operators and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from tss_kernels.autocast import autocast_inputs, outside_autocast
from tss_kernels.backends.dispatch import forced, implementation, select, shape_of
from tss_kernels.backends.registry import INSTALLED
from tss_kernels.gated_linear import reference
from tss_kernels.operators import implement
from tss_kernels.tensors import PRE_DISPATCH, is_included, rows_of, shaped_like
from tss_kernels.validation import (
    FLOATING,
    check_importance,
    check_linear,
    check_packed,
    check_scores,
    check_threshold,
    needs_gradient,
)

# In these dtypes PyTorch's own product dYᵀ x has the precision in which the gradient of the scores is summed.
WIDE = (torch.float32, torch.float64)
# A gated map: weight, gates, bias, threshold, importance, and whether the gates are packed or scores.
GatedMap = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float, torch.Tensor | None, bool]
STRIDED = torch.strided
# Tensor classes that do not override operations.
PLAIN = (torch.Tensor, torch.nn.Parameter)


@outside_autocast
def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    y, packed = implementation("gated_linear", backend).forward(rows_of(x), weight, scores, bias, threshold)
    return shaped_like(y, x.shape[:-1]), packed


@outside_autocast
def _packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, backend: str
) -> torch.Tensor:
    y = implementation("packed_linear", backend).packed_linear(rows_of(x), weight, packed, bias)
    return shaped_like(y, x.shape[:-1])


@outside_autocast
def _input_grad(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, backend: str) -> torch.Tensor:
    dx = implementation("gated_linear", backend).input_grad(rows_of(dy), weight, packed)
    return shaped_like(dx, dy.shape[:-1])


@outside_autocast
def _scores_grad(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None, backend: str
) -> torch.Tensor:
    return implementation("gated_linear", backend).scores_grad(rows_of(dy), rows_of(x), weight, importance)


@outside_autocast
def _weight_grad(dy: torch.Tensor, x: torch.Tensor, packed: torch.Tensor, backend: str) -> torch.Tensor:
    # Shared by all backends: a product and a selection, needed only to train W, which TSS never does.
    return reference.weight_grad(rows_of(dy), rows_of(x), packed)


_forward_operator = implement("gated_linear", _forward)
_packed_operator = implement("packed_linear", _packed_linear)
_input_grad_operator = implement("gated_linear_input_grad", _input_grad)
scores_grad_operator = implement("gated_linear_scores_grad", _scores_grad)
weight_grad_operator = implement("gated_linear_weight_grad", _weight_grad)


def bias_grad(dy: torch.Tensor) -> torch.Tensor:
    """Compute dL/db: sum dy (..., out) over all rows."""
    return rows_of(dy).sum(0)


def _by_operator(
    x: torch.Tensor,
    weight: torch.Tensor,
    gates: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float,
    is_packed: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and the packed gates used to compute it."""
    if is_packed:
        return _packed_operator(x, weight, gates, bias, backend), gates
    return _forward_operator(x, weight, gates, bias, threshold, backend)


class _GatedProduct(torch.autograd.Function):
    """Saves packed gates, not scores: 1 bit instead of 32, and a step taken in between cannot change the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        gates: torch.Tensor,
        bias: torch.Tensor | None,
        threshold: float,
        importance: torch.Tensor | None,
        is_packed: bool,
        backend: str,
    ) -> torch.Tensor:
        y, packed = _by_operator(x, weight, gates, bias, threshold, is_packed, backend)
        _, for_weight, for_scores, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight or for_scores else None, weight, packed, importance)
        ctx.backend = backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, packed, importance = ctx.saved_tensors
        for_x, for_weight, for_scores, for_bias = ctx.needs_input_grad[:4]
        return (
            _input_grad_operator(dy, weight, packed, ctx.backend) if for_x else None,
            weight_grad_operator(dy, x, packed, ctx.backend) if for_weight else None,
            scores_grad_operator(dy, x, weight, importance, ctx.backend) if for_scores else None,
            bias_grad(dy) if for_bias else None,
            None,
            None,
            None,
            None,
        )


def composes(x: torch.Tensor, *maps: GatedMap) -> bool:
    """Return whether PyTorch's own linear with W * g may run for maps applied in sequence: checks all it relies on.

    In plain eager mode on the CPU PyTorch does the product anyway, and its own autograd nodes cost least. False does
    not mean that the arguments are invalid.
    """
    if (
        torch.compiler.is_dynamo_compiling()  # first: it cannot trace what follows
        or not (x.is_cpu and x.dtype in WIDE and x.dim() >= 2 and x.layout is STRIDED)
        or not (forced.backend in (None, "native") and INSTALLED["native"])
        # plain eager mode: no autocast, dispatch mode, transform or trace
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or is_included(PRE_DISPATCH)
        or torch._C._get_tracing_state()
        or forward_ad._current_level >= 0
    ):
        return False
    dtype = x.dtype
    in_features = x.shape[-1]
    # Inlined: this runs before every product, and one function call costs as much as ten of these lines.
    for weight, gates, bias, threshold, importance, is_packed in maps:
        fits = (
            # W: (out, in), frozen, contiguous, without lazy negation
            type(weight) in PLAIN
            and weight.is_cpu
            and weight.dtype is dtype
            and weight.dim() == 2
            and weight.shape[1] == in_features
            and weight.layout is STRIDED
            and weight.is_contiguous()
            and not weight.is_neg()
            and not weight.requires_grad
            # scores of W's shape, or packed gates
            and type(gates) in PLAIN
            and gates.is_cpu
            and gates.dtype is (torch.uint8 if is_packed else torch.float32)
            and gates.shape == (weight.shape[0], (in_features + 7) // 8 if is_packed else in_features)
            and gates.layout is STRIDED
            and not gates.is_neg()
            and (
                bias is None
                or (
                    type(bias) in PLAIN
                    and bias.is_cpu
                    and bias.dtype is dtype
                    and bias.shape == weight.shape[:1]
                    and bias.layout is STRIDED
                )
            )
            and (
                importance is None
                or (
                    type(importance) in PLAIN
                    and importance.is_cpu
                    and importance.dtype in FLOATING
                    and importance.shape == weight.shape
                    and importance.layout is STRIDED
                    and not importance.is_neg()
                )
            )
            and isinstance(threshold, int | float)
        )
        if not fits:
            return False
        in_features = weight.shape[0]
    return True


def check_product(x: torch.Tensor, gated: GatedMap) -> None:
    """Check the arguments. Raises TypeError and ValueError."""
    weight, gates, bias, threshold, importance, is_packed = gated
    check_linear(x, weight, bias)
    if is_packed:
        check_packed(gates, weight)
    else:
        check_scores(gates, weight)
    check_importance(importance, weight)
    check_threshold(threshold)


def gated_product(x: torch.Tensor, gated: GatedMap) -> torch.Tensor:
    """Compute y = x (W * g)ᵀ + b by scores or by packed gates, with one check and one choice of backend."""
    weight, gates, bias, threshold, importance, is_packed = gated
    if isinstance(x, torch.Tensor) and composes(x, gated):
        native = implementation("gated_linear", "native")
        if is_packed:
            masked = native.masked_by_bits(weight, gates)
        else:
            masked = native.masked_by_scores(gates, weight, threshold, importance)
        if x.dim() == 2 or x.is_contiguous():
            return torch.nn.functional.linear(x, masked, bias)
        return shaped_like(torch.nn.functional.linear(rows_of(x), masked, bias), x.shape[:-1])
    x, weight, bias = autocast_inputs(x, weight, bias)
    check_product(x, (weight, gates, bias, threshold, importance, is_packed))
    differentiated = needs_gradient(x, weight, gates, bias)
    shape = shape_of(x, weight.shape[1], weight.shape[0])
    backend = select("packed_linear" if is_packed else "gated_linear", x.device, x.dtype, shape)
    if differentiated:
        return _GatedProduct.apply(x, weight, gates, bias, threshold, importance, is_packed, backend)
    return _by_operator(x, weight, gates, bias, threshold, is_packed, backend)[0]


def gated_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    threshold: float = 0.0,
    importance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute y = x @ where(scores >= threshold, weight, 0).T + bias, with a straight-through gradient for the scores.

    Gradients: x; bias; scores: (dYᵀ x) * weight * (1 - importance) in float32; weight: (dYᵀ x) * gate, if it requires
    one. Differentiable once.

    Args:
        x: (..., in), floating.
        weight: (out, in), of x's dtype.
        scores: (out, in), float32.
        bias: (out,), of x's dtype, or None.
        threshold: a gate is on if its score is at least this.
        importance: (out, in) in [0, 1], or None.

    Returns:
        (..., out) of x's dtype; under autocast, of the dtype that torch's linear returns.

    Raises:
        TypeError, ValueError: names the argument and what it should be.
        BackendUnavailable: a forced backend cannot run it.
    """
    return gated_product(x, (weight, scores, bias, threshold, importance, False))


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute y = x @ where(gate, weight, 0).T + bias, the same product as `gated_linear`, from packed gates.

    Gradients for x, bias, and weight if it requires one; differentiable once.

    Args:
        x: (..., in), floating.
        weight: (out, in), of x's dtype.
        packed: uint8 (out, ceil(in / 8)), as returned by `pack_gates`.
        bias: (out,), of x's dtype, or None.

    Returns:
        (..., out) of x's dtype.

    Raises:
        TypeError, ValueError: names the argument and what it should be.
    """
    return gated_product(x, (weight, packed, bias, 0.0, None, True))
