"""gated_adapter: checks, the registered operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from tss_kernels.autocast import autocast_weights, outside_autocast
from tss_kernels.backends.dispatch import implementation, select, shape_of
from tss_kernels.gated_adapter.reference import ACTIVATIONS, active_hidden
from tss_kernels.gated_linear.api import (
    PLAIN,
    GatedMap,
    bias_grad,
    check_product,
    composes,
    gated_product,
    scores_grad_operator,
    weight_grad_operator,
)
from tss_kernels.gates.api import pack_gates, pack_pair
from tss_kernels.operators import implement
from tss_kernels.tensors import rows_of, shaped_like
from tss_kernels.validation import check_choice, check_floating, needs_gradient

# Activations whose gradient only needs their result, so that it may overwrite their argument.
_OVERWRITING = {"relu": torch.relu_, "tanh": torch.tanh_}


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
_NO_GRADIENTS = (None,) * 6  # for gates, importance, activation and backend


class _GatedAdapter(torch.autograd.Function):
    """Saves gates, not scores, and one value per hidden unit. Scores are arguments only to get gradients."""

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
    """Return the wanted gradients of one map's weight, scores and bias; dy (rows, out), x (rows, in), one dtype."""
    for_weight, for_scores, for_bias = wanted
    return (
        weight_grad_operator(dy, x, gates, backend) if for_weight else None,
        scores_grad_operator(dy, x, weight, importance, backend) if for_scores else None,
        bias_grad(dy) if for_bias else None,
    )


def check_adapter(x: torch.Tensor, down: GatedMap, up: GatedMap, activation: str) -> tuple[Any, ...]:
    """Check the arguments; return x, both weights and both biases in the operators' dtypes, and the backend.

    Raises what gated_linear raises, with the name of the map.
    """
    check_choice("activation", activation, tuple(ACTIVATIONS))
    for side, weight in (("down", down[0]), ("up", up[0])):
        check_floating(f"{side}_weight", weight)
    check_floating("x", x)
    if up[0].shape != down[0].shape[::-1]:
        raise ValueError(
            f"up_weight must have down_weight's shape {tuple(down[0].shape)} reversed but has {tuple(up[0].shape)}: "
            "pass it as (in, bottleneck)"
        )
    dtype, weights = autocast_weights(x, down[0], up[0], down[2], up[2])
    narrow = x
    if dtype != x.dtype:
        # The operators narrow x themselves; the residual keeps x's dtype, which must be wide enough for the sum.
        narrow, x = x.new_empty((0, *x.shape[-1:]), dtype=dtype), x.to(torch.promote_types(x.dtype, dtype))
    side = "down"
    try:
        check_product(narrow, (weights[0], down[1], weights[2], *down[3:]))
        side = "up"
        check_product(weights[0].mT, (weights[1], up[1], weights[3], *up[3:]))
    except (TypeError, ValueError) as error:
        raise type(error)(f"the {side} map: {error}") from None
    shape = shape_of(x, down[0].shape[1], down[0].shape[0])
    return (x, *weights, select("gated_adapter", x.device, dtype, shape))


def adapter_product(x: torch.Tensor, down: GatedMap, up: GatedMap, activation: str) -> torch.Tensor:
    """Compute x + up(activation(down(x))), each map by scores or by packed gates, with one check and one choice."""
    if (
        type(x) in PLAIN  # in-place writes may fail on other classes
        and composes(x, down, up)
        and up[0].shape[0] == x.shape[-1]
        and activation in ACTIVATIONS
    ):
        native, masked = implementation("gated_linear", "native"), []
        for weight, gates, _, threshold, importance, is_packed in (down, up):
            if is_packed:
                masked.append(native.masked_by_bits(weight, gates))
            else:
                masked.append(native.masked_by_scores(gates, weight, threshold, importance))
        rows, activate = x.flatten(0, -2), _OVERWRITING.get(activation) or ACTIVATIONS[activation]
        hidden = activate(linear(rows, masked[0], down[2]))
        # Autograd does not save the branch, so the residual is added in place.
        y = linear(hidden, masked[1], up[2]).add_(rows)
        return y if x.dim() == 2 else y.view(x.shape)
    x, down_weight, up_weight, down_bias, up_bias, backend = check_adapter(x, down, up, activation)
    down_scores, up_scores = None if down[5] else down[1], None if up[5] else up[1]
    if torch.compiler.is_exporting() and torch.is_grad_enabled():
        # One operation would take packed gates, which hide from autograd that scores need a gradient.
        hidden = gated_product(x.to(down_weight.dtype), (down_weight, down[1], down_bias, *down[3:]))
        return x + gated_product(ACTIVATIONS[activation](hidden), (up_weight, up[1], up_bias, *up[3:])).to(x.dtype)
    differentiated = needs_gradient(x, down_scores, up_scores, down_weight, up_weight, down_bias, up_bias)
    packed = _packed(down, up)
    if differentiated:
        return _GatedAdapter.apply(
            x, down_weight, up_weight, down_scores, up_scores, down_bias, up_bias, *packed, down[4], up[4], activation,
            backend,
        )  # fmt: skip
    return _forward_operator(
        x, down_weight, packed[0], up_weight, packed[1], down_bias, up_bias, activation, backend
    )[0]  # fmt: skip


def _packed(down: GatedMap, up: GatedMap) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both maps' packed gates."""
    if not down[5] and not up[5] and down[3] == up[3]:
        return pack_pair(down[1], up[1], down[3])
    pair = (gates if is_packed else pack_gates(gates, threshold) for _, gates, _, threshold, _, is_packed in (down, up))
    first, second = pair
    return first, second


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
) -> torch.Tensor:
    """Compute x + up(activation(down(x))) with both maps gated: the whole adapter, including its residual.

    Gradients are as for `gated_linear`.

    Args:
        x: (..., d), floating.
        down_weight, down_scores, down_importance: (bottleneck, d); dtypes as for `gated_linear`.
        up_weight, up_scores, up_importance: (d, bottleneck).
        down_bias: (bottleneck,) or None.
        up_bias: (d,) or None.
        activation: "relu", "gelu" (exact), "silu" or "tanh".
        threshold: a gate is on if its score is at least this.

    Returns:
        (..., d) of x's dtype, which autocast does not change.

    Raises:
        TypeError, ValueError: names the argument and what it should be.
        BackendUnavailable: a forced backend cannot run it.
    """
    down = (down_weight, down_scores, down_bias, threshold, down_importance, False)
    up = (up_weight, up_scores, up_bias, threshold, up_importance, False)
    return adapter_product(x, down, up, activation)


def packed_adapter(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    down_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    *,
    activation: str = "relu",
) -> torch.Tensor:
    """Compute the same as `gated_adapter`, x + up(activation(down(x))), from packed gates.

    Gradients for x, the biases, and the weights if they require one.

    Args:
        x: (..., d), floating.
        down_weight, up_weight, down_bias, up_bias, activation: as for `gated_adapter`.
        down_packed: uint8 (bottleneck, ceil(d / 8)), as returned by `pack_gates`.
        up_packed: uint8 (d, ceil(bottleneck / 8)).

    Returns:
        (..., d) of x's dtype.

    Raises:
        TypeError, ValueError: names the argument and what it should be.
    """
    down = (down_weight, down_packed, down_bias, 0.0, None, True)
    return adapter_product(x, down, (up_weight, up_packed, up_bias, 0.0, None, True), activation)
