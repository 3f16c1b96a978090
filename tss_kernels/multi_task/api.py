"""multi_task_linear and multi_task_adapter: checks, the registered operators and the gradient of x."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tss_kernels.autocast import autocast_inputs, autocast_weights, outside_autocast
from tss_kernels.backends.dispatch import implementation, select, shape_of
from tss_kernels.gated_adapter.reference import ACTIVATIONS
from tss_kernels.operators import implement
from tss_kernels.validation import (
    check_bank,
    check_choice,
    check_floating,
    check_linear,
    check_task_ids,
    needs_gradient,
)

Tensor = torch.Tensor


def _entries(tensor: Tensor) -> Tensor:
    """Reshape (batch, ..., features) to (batch, length, features), as a view where possible."""
    if tensor.dim() == 3:
        return tensor
    length = 1
    for size in tensor.shape[1:-1]:
        length *= size
    return tensor.reshape(tensor.shape[0], length, tensor.shape[-1])


@outside_autocast
def _linear(x: Tensor, weight: Tensor, bank: Tensor, task_ids: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    y = implementation("multi_task_linear", backend).linear(_entries(x), weight, bank, task_ids, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


@outside_autocast
def _linear_input_grad(dy: Tensor, weight: Tensor, bank: Tensor, task_ids: Tensor, backend: str) -> Tensor:
    dx = implementation("multi_task_linear", backend).linear_input_grad(_entries(dy), weight, bank, task_ids)
    return dx.view(*dy.shape[:-1], weight.shape[1])


@outside_autocast
def _adapter(
    x: Tensor,
    down_weight: Tensor,
    down_bank: Tensor,
    up_weight: Tensor,
    up_bank: Tensor,
    task_ids: Tensor,
    down_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y, hidden = implementation("multi_task_adapter", backend).adapter(
        _entries(x), down_weight, down_bank, up_weight, up_bank, task_ids, down_bias, up_bias, activation
    )
    return y.view(x.shape), hidden.view(*x.shape[:-1], down_weight.shape[0])


@outside_autocast
def _adapter_input_grad(
    dy: Tensor,
    hidden: Tensor,
    down_weight: Tensor,
    down_bank: Tensor,
    up_weight: Tensor,
    up_bank: Tensor,
    task_ids: Tensor,
    activation: str,
    backend: str,
) -> Tensor:
    dx = implementation("multi_task_adapter", backend).adapter_input_grad(
        _entries(dy), _entries(hidden), down_weight, down_bank, up_weight, up_bank, task_ids, activation
    )
    return dx.view(dy.shape)


_linear_operator = implement("multi_task_linear", _linear)
_linear_grad_operator = implement("multi_task_linear_input_grad", _linear_input_grad)
_adapter_operator = implement("multi_task_adapter", _adapter)
_adapter_grad_operator = implement("multi_task_adapter_input_grad", _adapter_input_grad)


class _MultiTaskLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bank: Tensor, task_ids: Tensor, bias: Tensor | None, backend: str
    ) -> Tensor:
        ctx.save_for_backward(weight, bank, task_ids)
        ctx.backend = backend
        return _linear_operator(x, weight, bank, task_ids, bias, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _linear_grad_operator(dy, *ctx.saved_tensors, ctx.backend), None, None, None, None, None


class _MultiTaskAdapter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down_weight: Tensor,
        down_bank: Tensor,
        up_weight: Tensor,
        up_bank: Tensor,
        task_ids: Tensor,
        down_bias: Tensor | None,
        up_bias: Tensor | None,
        activation: str,
        backend: str,
    ) -> Tensor:
        y, hidden = _adapter_operator(
            x, down_weight, down_bank, up_weight, up_bank, task_ids, down_bias, up_bias, activation, backend
        )
        ctx.save_for_backward(hidden, down_weight, down_bank, up_weight, up_bank, task_ids)
        ctx.options = activation, backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _adapter_grad_operator(dy, *ctx.saved_tensors, *ctx.options), *(None,) * 9


def _check_frozen(**parameters: Tensor | None) -> None:
    """Check that no parameter requires a gradient, since it would get none."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in parameters.items():
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"products of many tasks have a gradient for x only, but {name} requires one: detach it, or train one "
                "task at a time with gated_linear or gated_adapter"
            )


def check_multi_task_linear(x: Any, weight: Any, packed_bank: Any, task_ids: Any, bias: Any) -> None:
    """Check the arguments. Raises TypeError and ValueError."""
    check_linear(x, weight, bias)
    check_bank(packed_bank, weight)
    check_task_ids(task_ids, x)


def multi_task_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed_bank: torch.Tensor,
    task_ids: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute y[b] = x[b] @ where(gate of task_ids[b], weight, 0).T + bias: rows of many tasks in one batch.

    No bit of y[b] depends on the rest of the batch (README.md says to what it is equal). Gradient only for x;
    differentiable once.

    Args:
        x: (batch, ..., in), floating; all rows of x[b] belong to task task_ids[b]: one id per row for (rows, in), one
            per sequence for (B, L, in).
        weight: (out, in), of x's dtype; without a gradient.
        packed_bank: uint8 (tasks, out, ceil(in / 8)), torch.stack of results of `pack_gates`.
        task_ids: int64 (batch,), in any order.
        bias: (out,), of x's dtype, or None; without a gradient.

    Returns:
        (batch, ..., out) of x's dtype; under autocast, of the dtype that torch's linear returns.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message says what it should be.
        ValueError: an argument has the wrong shape or device; a weight or bias requires a gradient; an id, which the
            message names, is outside the bank. On a CUDA device the backends triton and cuda do not check ids, because
            Python would have to wait: the rows of such an id are NaN.
        BackendUnavailable: a forced backend cannot run it.
    """
    x, weight, bias = autocast_inputs(x, weight, bias)
    check_multi_task_linear(x, weight, packed_bank, task_ids, bias)
    _check_frozen(weight=weight, bias=bias)
    differentiated = needs_gradient(x, weight, bias)
    backend = select("multi_task_linear", x.device, x.dtype, shape_of(x, weight.shape[1], weight.shape[0]))
    run = _MultiTaskLinear.apply if differentiated else _linear_operator
    return run(x, weight, packed_bank, task_ids, bias, backend)


def check_multi_task_adapter(
    x: Any,
    down_weight: Any,
    down_bank: Any,
    up_weight: Any,
    up_bank: Any,
    task_ids: Any,
    down_bias: Any,
    up_bias: Any,
    activation: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Check the arguments; return x, weights and biases in the operators' dtypes. Raises TypeError, ValueError."""
    check_choice("activation", activation, tuple(ACTIVATIONS))
    for name, tensor in (("x", x), ("down_weight", down_weight), ("up_weight", up_weight)):
        check_floating(name, tensor)
    if up_weight.shape != down_weight.shape[::-1]:
        raise ValueError(
            f"up_weight must have down_weight's shape {tuple(down_weight.shape)} reversed but has "
            f"{tuple(up_weight.shape)}: pass it as (in, bottleneck)"
        )
    dtype, (down, up, down_bias, up_bias) = autocast_weights(x, down_weight, up_weight, down_bias, up_bias)
    narrow = x
    if dtype != x.dtype:
        # The operators narrow x themselves; the residual keeps x's dtype, which must be wide enough for the sum.
        narrow, x = x.new_empty((0, *x.shape[-1:]), dtype=dtype), x.to(torch.promote_types(x.dtype, dtype))
    check_task_ids(task_ids, x)
    side = "down"
    try:
        check_linear(narrow, down, down_bias)
        check_bank(down_bank, down, "down_bank")
        side = "up"
        check_linear(down.mT, up, up_bias)
        check_bank(up_bank, up, "up_bank")
    except (TypeError, ValueError) as error:
        raise type(error)(f"the {side} map: {error}") from None
    if up_bank.shape[0] != down_bank.shape[0]:
        raise ValueError(
            f"down_bank and up_bank must have the same tasks, but down_bank has {down_bank.shape[0]} and up_bank "
            f"{up_bank.shape[0]}: stack both from the same tasks"
        )
    return x, down, up, down_bias, up_bias


def multi_task_adapter(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_bank: torch.Tensor,
    up_weight: torch.Tensor,
    up_bank: torch.Tensor,
    task_ids: torch.Tensor,
    down_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    *,
    activation: str = "relu",
) -> torch.Tensor:
    """Compute y[b] = x[b] + up(activation(down(x[b]))) by the gates of task_ids[b]: many tasks in one batch.

    dtypes are as for `gated_adapter`; bits and gradient as for `multi_task_linear`.

    Args:
        x: (batch, ..., d), floating; all rows of x[b] belong to task task_ids[b].
        down_weight: (bottleneck, d).
        down_bank: uint8 (tasks, bottleneck, ceil(d / 8)), torch.stack of results of `pack_gates`.
        up_weight: (d, bottleneck).
        up_bank: uint8 (tasks, d, ceil(bottleneck / 8)), of the same tasks.
        task_ids: int64 (batch,), in any order.
        down_bias: (bottleneck,), or None.
        up_bias: (d,), or None.
        activation: "relu", "gelu" (exact), "silu" or "tanh".

    Returns:
        x's shape and dtype.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `multi_task_linear`.
    """
    x, down_weight, up_weight, down_bias, up_bias = check_multi_task_adapter(
        x, down_weight, down_bank, up_weight, up_bank, task_ids, down_bias, up_bias, activation
    )
    _check_frozen(down_weight=down_weight, up_weight=up_weight, down_bias=down_bias, up_bias=up_bias)
    differentiated = needs_gradient(x, down_weight, up_weight, down_bias, up_bias)
    bottleneck, d = down_weight.shape
    backend = select("multi_task_adapter", x.device, down_weight.dtype, shape_of(x, d, bottleneck))
    arguments = (
        x, down_weight, down_bank, up_weight, up_bank, task_ids, down_bias, up_bias, activation, backend
    )  # fmt: skip
    if differentiated:
        return _MultiTaskAdapter.apply(*arguments)
    return _adapter_operator(*arguments)[0]
