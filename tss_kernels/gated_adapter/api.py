"""gated_adapter: checks, the registered operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tss_kernels.autocast import autocast_weights, outside_autocast
from tss_kernels.checks import (
    check_choice,
    check_importance,
    check_linear,
    check_packed,
    check_scores,
    check_threshold,
    check_untransformed,
    of_map,
)
from tss_kernels.dispatch import implementation, select
from tss_kernels.gated_adapter import composed
from tss_kernels.gated_adapter.composed import Pair
from tss_kernels.gated_adapter.reference import ACTIVATIONS, active_hidden
from tss_kernels.gated_linear import composed as products
from tss_kernels.gated_linear.api import bias_grad, scores_grad_operator, weight_grad_operator
from tss_kernels.gates.api import gates_of_pair
from tss_kernels.gates.reference import pack
from tss_kernels.operators import implement, rows_of, shaped_like
from tss_kernels.watched import plain


@outside_autocast
def _forward(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    down_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    y, hidden = implementation("gated_adapter", backend).forward(
        rows_of(x), down_weight, down_packed, up_weight, up_packed, down_bias, up_bias, activation
    )
    return shaped_like(y, x.shape[:-1]), hidden


@outside_autocast
def _input_grad(
    dy: torch.Tensor,
    hidden: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    activation: str,
    for_x: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    dx, d_hidden = implementation("gated_adapter", backend).input_grad(
        rows_of(dy), hidden, down_weight, down_packed, up_weight, up_packed, activation, for_x
    )
    return shaped_like(dx, dy.shape[:-1]) if for_x else dx, d_hidden


_forward_operator = implement("gated_adapter", _forward)
_input_grad_operator = implement("gated_adapter_input_grad", _input_grad)


_NOTHING = (None, None, None)
_NO_GRADIENTS = (None,) * 6  # of gates, importance, activation and backend


class _GatedAdapter(torch.autograd.Function):
    """Keeps gates, not scores, and one value per hidden unit. Scores are arguments for their gradients alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        down_weight: torch.Tensor,
        up_weight: torch.Tensor,
        down_scores: torch.Tensor | None,
        up_scores: torch.Tensor | None,
        down_bias: torch.Tensor | None,
        up_bias: torch.Tensor | None,
        down_gates: torch.Tensor,
        up_gates: torch.Tensor,
        down_importance: torch.Tensor | None,
        up_importance: torch.Tensor | None,
        activation: str,
        backend: str,
    ) -> torch.Tensor:
        y, hidden = _forward_operator(
            x, down_weight, down_gates, up_weight, up_gates, down_bias, up_bias, activation, backend
        )
        _, for_down, _, for_down_scores, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            x if for_down or for_down_scores else None,
            hidden, down_weight, down_gates, up_weight, up_gates, down_importance, up_importance,
        )  # fmt: skip
        ctx.options = activation, backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, hidden, down_weight, down_gates, up_weight, up_gates, down_importance, up_importance = ctx.saved_tensors
        activation, backend = ctx.options
        for_x, for_down, for_up, for_down_scores, for_up_scores, for_down_bias, for_up_bias = ctx.needs_input_grad[:7]
        dx, down, up = None, _NOTHING, _NOTHING
        if for_x or for_down or for_down_scores or for_down_bias:
            dx, d_hidden = _input_grad_operator(
                dy, hidden, down_weight, down_gates, up_weight, up_gates, activation, for_x, backend
            )
            narrow = None if x is None else rows_of(x).to(down_weight.dtype)
            down = _parameter_gradients(
                d_hidden, narrow, down_weight, down_gates, down_importance, (for_down, for_down_scores, for_down_bias),
                backend,
            )  # fmt: skip
        if for_up or for_up_scores or for_up_bias:
            active = active_hidden(hidden, activation)
            up = _parameter_gradients(
                rows_of(dy).to(up_weight.dtype), active, up_weight, up_gates, up_importance,
                (for_up, for_up_scores, for_up_bias), backend,
            )  # fmt: skip
        return (dx if for_x else None, down[0], up[0], down[1], up[1], down[2], up[2], *_NO_GRADIENTS)


def _parameter_gradients(
    dy: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor,
    gates: torch.Tensor,
    importance: torch.Tensor | None,
    wanted: tuple[bool, bool, bool],
    backend: str,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Those gradients of one map's weight, scores and bias that are wanted; dy (rows, out), x (rows, in), one dtype."""
    for_weight, for_scores, for_bias = wanted
    return (
        weight_grad_operator(dy, x, pack(gates) if gates.dtype == torch.bool else gates, backend)
        if for_weight
        else None,
        scores_grad_operator(dy, x, weight, importance, backend) if for_scores else None,
        bias_grad(dy) if for_bias else None,
    )


def _checked(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    up_weight: torch.Tensor,
    down_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
) -> tuple[Any, ...]:
    """x, both weights and both biases as the operators want them, and the backend. Raises what gated_linear raises."""
    check_choice("activation", activation, tuple(ACTIVATIONS))
    if up_weight.shape != down_weight.shape[::-1]:
        raise ValueError(
            f"up_weight must have down_weight's shape {tuple(down_weight.shape)} reversed but has "
            f"{tuple(up_weight.shape)}"
        )
    dtype, weights = autocast_weights(x, down_weight, up_weight, down_bias, up_bias)
    narrow = x
    if dtype != x.dtype:
        # The operators narrow x themselves and keep the residual in x's dtype, which must hold what is added to it.
        narrow, x = x.new_empty((0, *x.shape[-1:]), dtype=dtype), x.to(torch.promote_types(x.dtype, dtype))
    side = "down"
    try:
        check_linear(narrow, weights[0], weights[2])
        side = "up"
        check_linear(weights[0].mT, weights[1], weights[3])
    except (TypeError, ValueError) as error:
        raise of_map(side, error) from None
    return (x, *weights, select("gated_adapter", x.device, dtype))


def _check_maps(weights: tuple[torch.Tensor, torch.Tensor], packed: Pair, scores: Pair, importance: Pair) -> None:
    """What is there fits its weight. Pairs: down, up."""
    for index, side in enumerate(("down", "up")):
        weight, bits, own = weights[index], packed[index], scores[index]
        try:
            if bits is not None:
                check_packed(bits, weight)
            if own is not None:
                check_scores(own, weight)
            check_importance(importance[index], weight)
        except (TypeError, ValueError) as error:
            raise of_map(side, error) from None


def _call(
    checked: tuple[Any, ...],
    gates: tuple[torch.Tensor, torch.Tensor],
    scores: tuple[torch.Tensor | None, torch.Tensor | None],
    importance: tuple[torch.Tensor | None, torch.Tensor | None],
    activation: str,
) -> torch.Tensor:
    """The operator, inside the autograd.Function where a gradient is to be recorded. Pairs: down, up."""
    x, down_weight, up_weight, down_bias, up_bias, backend = checked
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad
        for tensor in (x, *scores, down_weight, up_weight, down_bias, up_bias)
    ):
        check_untransformed()
        return _GatedAdapter.apply(
            x, down_weight, up_weight, *scores, down_bias, up_bias, *gates, *importance, activation, backend
        )
    y, _ = _forward_operator(
        x, down_weight, gates[0], up_weight, gates[1], down_bias, up_bias, activation, backend
    )  # fmt: skip
    return y


def _composed(
    checked: tuple[Any, ...], masked: tuple[torch.Tensor, ...], scores: Pair, importance: Pair, activation: str
) -> torch.Tensor:
    """The adapter of PyTorch's own operations, by both maps' W * g. Pairs: down, up."""
    x, down_weight, up_weight, down_bias, up_bias, _ = checked
    down = products.trained(scores[0], masked[0], down_weight, importance[0])
    up = products.trained(scores[1], masked[1], up_weight, importance[1])
    return composed.adapter(x, down, up, down_bias, up_bias, activation)


def gated_adapter(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_scores: torch.Tensor,
    up_weight: torch.Tensor,
    up_scores: torch.Tensor,
    down_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    *,
    activation: str = "relu",
    threshold: float = 0.0,
    down_importance: torch.Tensor | None = None,
    up_importance: torch.Tensor | None = None,
    kept: tuple[products.KeptProduct | None, products.KeptProduct | None] = (None, None),
) -> torch.Tensor:
    """x + up(activation(down(x))) with both maps gated: the whole adapter, its residual included.

    x (..., d); down_weight, down_scores, down_importance (bottleneck, d); up_weight, up_scores, up_importance
    (d, bottleneck); down_bias (bottleneck,); up_bias (d,); activation "relu", "gelu" (exact), "silu" or "tanh".
    dtypes, gradients and errors as gated_linear's; returns (..., d) of x's dtype, which autocast does not change.
    """
    checked = _checked(x, down_weight, up_weight, down_bias, up_bias, activation)
    check_threshold(threshold)
    given = (down_scores, up_scores), (down_importance, up_importance)
    _check_maps(checked[1:3], (None, None), *given)
    if composed.composes(checked[-1], checked[0], checked[1:3], *given):
        masked = (
            products.masked_by_scores(weight, scores, threshold, room)
            for weight, scores, room in zip(checked[1:3], given[0], kept, strict=True)
        )
        return _composed(checked, tuple(masked), *given, activation)
    if checked[-1] == "reference":
        # Packing gates here and unpacking them in both passes would take longer than everything else with few rows.
        gates = down_scores >= threshold, up_scores >= threshold
    else:
        gates = gates_of_pair(down_scores, up_scores, threshold, checked[-1])
    return _call(checked, gates, *given, activation)


def gated_adapter_from_packed(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    down_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    *,
    activation: str = "relu",
    down_scores: torch.Tensor | None = None,
    up_scores: torch.Tensor | None = None,
    down_importance: torch.Tensor | None = None,
    up_importance: torch.Tensor | None = None,
    kept: tuple[products.KeptProduct | None, products.KeptProduct | None] = (None, None),
) -> torch.Tensor:
    """gated_adapter with its gates given at one bit each, as pack_gates makes them: nothing is compared here.

    down_packed uint8 (bottleneck, ceil(d / 8)); up_packed uint8 (d, ceil(bottleneck / 8)). Scores that are given and
    require grad get the straight-through gradient; their values are not looked at. Further arguments and errors as
    gated_adapter's.
    """
    checked = _checked(x, down_weight, up_weight, down_bias, up_bias, activation)
    packed, given = (down_packed, up_packed), ((down_scores, up_scores), (down_importance, up_importance))
    _check_maps(checked[1:3], packed, *given)
    if composed.composes(checked[-1], checked[0], checked[1:3], *given) and plain(down_packed) and plain(up_packed):
        masked = (
            products.masked_by_gates(weight, gates, room)
            for weight, gates, room in zip(checked[1:3], packed, kept, strict=True)
        )
        return _composed(checked, tuple(masked), *given, activation)
    return _call(checked, packed, *given, activation)
