"""The gated linear map: checks, registered operators, autograd."""

from __future__ import annotations

from typing import Any

import torch

from tss_kernels import checks, dispatch
from tss_kernels.autocast import cast_operands
from tss_kernels.gated_linear import reference
from tss_kernels.operators import register


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return dispatch.load("gated_linear", backend).forward(x, weight, scores, bias, threshold)


def _forward_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    out_features, in_features = weight.shape
    packed = scores.new_empty((out_features, (in_features + 7) // 8), dtype=torch.uint8)
    return x.new_empty((x.shape[0], out_features)), packed


def _input_grad(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, backend: str) -> torch.Tensor:
    return dispatch.load("gated_linear", backend).input_grad(dy, weight, packed)


def _input_grad_fake(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, backend: str) -> torch.Tensor:
    return dy.new_empty((dy.shape[0], weight.shape[1]))


def _scores_grad(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None, backend: str
) -> torch.Tensor:
    # A backward pass may run inside autocast (checkpointing does), which would round the float32 product.
    with torch.autocast(dy.device.type, enabled=False):
        return dispatch.load("gated_linear", backend).scores_grad(dy, x, weight, importance)


def _scores_grad_fake(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None, backend: str
) -> torch.Tensor:
    return weight.new_empty(weight.shape, dtype=torch.float32)


_forward_op = register(
    "gated_linear(Tensor x, Tensor weight, Tensor scores, Tensor? bias, float threshold, str backend)"
    " -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_input_grad_op = register(
    "gated_linear_input_grad(Tensor dy, Tensor weight, Tensor packed, str backend) -> Tensor",
    _input_grad,
    _input_grad_fake,
)
_scores_grad_op = register(
    "gated_linear_scores_grad(Tensor dy, Tensor x, Tensor weight, Tensor? importance, str backend) -> Tensor",
    _scores_grad,
    _scores_grad_fake,
)


class GatedLinearFunction(torch.autograd.Function):
    """The gated linear map on rows; keeps the packed gate, so scores may change between forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scores: torch.Tensor,
        bias: torch.Tensor | None,
        importance: torch.Tensor | None,
        threshold: float,
        backend: str,
    ) -> torch.Tensor:
        y, packed = _forward_op(x, weight, scores, bias, threshold, backend)
        ctx.save_for_backward(x, weight, packed, importance)
        ctx.backend = backend
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, packed, importance = ctx.saved_tensors
        needs_x, needs_weight, needs_scores, needs_bias = ctx.needs_input_grad[:4]
        return (
            _input_grad_op(dy, weight, packed, ctx.backend) if needs_x else None,
            reference.weight_grad(dy, x, packed) if needs_weight else None,
            _scores_grad_op(dy, x, weight, importance, ctx.backend) if needs_scores else None,
            dy.sum(0) if needs_bias else None,
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
    """y = x @ where(scores >= threshold, weight, 0).T + bias; a NaN score switches its entry off.

    The score gradient is straight-through, (dYᵀ x) * weight * (1 - importance), on and off entries alike (TSS, eq. of the
    popup scores with soft-masking). Under autocast x, weight and bias are cast as for `torch.nn.functional.linear`.

    Args:
        x: (..., in), floating.
        weight: (out, in), x's dtype; gets (dYᵀ x) * gate as its gradient if it requires one.
        scores: (out, in), float32.
        bias: (out,), weight's dtype, or None.
        threshold: a gate is on where its score is at least this.
        importance: (out, in), in [0, 1], or None for no soft mask.

    Returns:
        (..., out) in x's dtype.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: dtypes that do not fit.
        BackendUnavailable: a forced backend that cannot run this.
    """
    x, weight, bias = cast_operands(x, weight, bias)
    checks.check_linear("gated_linear", x, weight, bias)
    checks.check_scores("gated_linear", scores)
    checks.check_same_shape("gated_linear", "scores", scores, "weight", weight)
    checks.check_same_shape("gated_linear", "importance", importance, "weight", weight)
    checks.check_same_device("gated_linear", x=x, weight=weight, scores=scores, bias=bias, importance=importance)
    backend = dispatch.backend_for("gated_linear", x.device.type, x.dtype)
    rows = x.reshape(-1, weight.shape[1])
    y = GatedLinearFunction.apply(rows, weight, scores, bias, importance, float(threshold), backend)
    return y.reshape(*x.shape[:-1], weight.shape[0])
