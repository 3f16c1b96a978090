"""gated_linear: checks, the registered operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tss_kernels.autocast import autocast_inputs, outside_autocast
from tss_kernels.checks import check_importance, check_linear, check_scores, check_threshold, check_untransformed
from tss_kernels.dispatch import implementation, select
from tss_kernels.gated_linear import composed, reference
from tss_kernels.gates.scores import keep_gates, kept_gates
from tss_kernels.operators import implement, packed_linear_operator, rows_of, shaped_like


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
    # Every backend's: a product and a selection, needed only where somebody trains W, which TSS never does.
    return reference.weight_grad(rows_of(dy), rows_of(x), packed)


forward_operator = implement("gated_linear", _forward)
input_grad_operator = implement("gated_linear_input_grad", _input_grad)
scores_grad_operator = implement("gated_linear_scores_grad", _scores_grad)
weight_grad_operator = implement("gated_linear_weight_grad", _weight_grad)


def bias_grad(dy: torch.Tensor) -> torch.Tensor:
    """dL/db: dy (..., out) summed over all rows."""
    return rows_of(dy).sum(0)


def _by_gates(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y and the packed gates; scores whose gates are known are not compared again."""
    packed = kept_gates(scores, threshold, backend)
    if packed is not None:
        return packed_linear_operator()(x, weight, packed, bias, backend), packed
    y, packed = forward_operator(x, weight, scores, bias, threshold, backend)
    keep_gates(scores, threshold, backend, packed)
    return y, packed


class _GatedLinear(torch.autograd.Function):
    """Keeps the packed gates, not the scores: 1 bit for 32, and no step taken in between can change the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scores: torch.Tensor,
        bias: torch.Tensor | None,
        threshold: float,
        importance: torch.Tensor | None,
        backend: str,
    ) -> torch.Tensor:
        y, packed = _by_gates(x, weight, scores, bias, threshold, backend)
        ctx.save_for_backward(x, weight, packed, importance)
        ctx.backend = backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, packed, importance = ctx.saved_tensors
        for_x, for_weight, for_scores, for_bias = ctx.needs_input_grad[:4]
        return (
            input_grad_operator(dy, weight, packed, ctx.backend) if for_x else None,
            weight_grad_operator(dy, x, packed, ctx.backend) if for_weight else None,
            scores_grad_operator(dy, x, weight, importance, ctx.backend) if for_scores else None,
            bias_grad(dy) if for_bias else None,
            None,
            None,
            None,
        )


def gated_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    threshold: float = 0.0,
    importance: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = x @ where(scores >= threshold, weight, 0).T + bias, with a straight-through gradient for the scores.

    x (..., in); weight (out, in) of x's dtype; scores (out, in) float32; bias (out,) of x's dtype or None;
    importance (out, in) in [0, 1] or None. Returns (..., out) of x's dtype; under autocast as torch's linear does.
    Gradients: x; bias; scores: (dYᵀ x) * weight * (1 - importance) in float32; weight: (dYᵀ x) * gate, if it asks
    for one. Differentiable once. Raises TypeError, ValueError, and BackendUnavailable for a forced backend.
    """
    return gated_linear_of(x, weight, scores, bias, threshold, importance)


def gated_linear_of(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float,
    importance: torch.Tensor | None,
    kept: composed.KeptProduct | None = None,
) -> torch.Tensor:
    """`gated_linear` with the room of a layer for its masked weight."""
    masked = None if kept is None else kept.masked_again(x, weight, scores, bias, importance, threshold)
    if masked is not None:
        return composed.product(x, composed.trained(scores, masked, weight, importance), bias)
    x, weight, bias = autocast_inputs(x, weight, bias)
    check_linear(x, weight, bias)
    check_scores(scores, weight)
    check_importance(importance, weight)
    check_threshold(threshold)
    backend = select("gated_linear", x.device, x.dtype)
    if composed.composes(backend, x, weight, scores, importance):
        masked = composed.masked_by_scores(weight, scores, threshold, kept)
        if kept is not None:
            kept.fitted(weight, scores, bias, importance)
        return composed.product(x, composed.trained(scores, masked, weight, importance), bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or scores.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        check_untransformed()
        return _GatedLinear.apply(x, weight, scores, bias, threshold, importance, backend)
    return _by_gates(x, weight, scores, bias, threshold, backend)[0]
