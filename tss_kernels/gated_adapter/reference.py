"""The gated adapter in plain PyTorch: the specification of every backend."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tss_kernels.gated_linear.reference import input_grad as linear_input_grad
from tss_kernels.gated_linear.reference import packed_linear

Activation = Callable[[torch.Tensor], torch.Tensor]
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
InputGrad = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}
# Their derivatives follow from their results, which the backward pass needs anyway; the others save their argument.
FROM_RESULT = ("relu", "tanh")
# What autograd computes for each of them, from the gradient and the saved value.
_aten = torch.ops.aten
_BACKWARD: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "relu": lambda grad, active: _aten.threshold_backward.default(grad, active, 0),
    "gelu": _aten.gelu_backward.default,
    "silu": _aten.silu_backward.default,
    "tanh": _aten.tanh_backward.default,
}


def forward(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    down_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
    product: Product = packed_linear,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute y = x + W_up' a(W_down' x + b_down) + b_up, and `hidden` for the backward pass.

    x (rows, d); down_weight (bottleneck, d) and down_packed uint8 (bottleneck, ceil(d / 8)); up_weight (d, bottleneck)
    and up_packed (d, ceil(bottleneck / 8)); biases (bottleneck,) and (d,) or None. Weights and biases have one dtype,
    in which both products are computed; x may be wider, and the residual is added in x's dtype. Returns y (rows, d) of
    x's dtype and hidden (rows, bottleneck) of the weights' dtype: the activation's result for FROM_RESULT, else its
    argument. `product` multiplies as `packed_linear` does.
    """
    before = product(x.to(down_weight.dtype), down_weight, down_packed, down_bias)
    active = ACTIVATIONS[activation](before)
    y = add_residual(product(active, up_weight, up_packed, up_bias), x)
    return y, active if activation in FROM_RESULT else before


def add_residual(branch: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Return the sum, contiguous, in the residual's dtype, which is no narrower; overwrites branch if dtypes match."""
    return branch.add_(residual) if branch.dtype == residual.dtype else (residual + branch).contiguous()


def active_hidden(hidden: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the activation's result, given `forward`'s hidden; hidden itself if it is that result."""
    return hidden if activation in FROM_RESULT else ACTIVATIONS[activation](hidden)


def input_grad(
    dy: torch.Tensor,
    hidden: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    activation: str,
    for_x: bool,
    product_grad: InputGrad = linear_input_grad,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute dL/dx = dY + dH W_down' and dL/dh, dH = (dY W_up') * a'(h), where h is the activation's argument.

    dy (rows, d) of x's dtype; hidden as returned by `forward`. Returns dx (rows, d) of dy's dtype, with no rows unless
    `for_x`, and dH (rows, bottleneck) of the weights' dtype. `product_grad` is a gated product's input gradient.
    """
    d_hidden = _BACKWARD[activation](product_grad(dy.to(up_weight.dtype), up_weight, up_packed), hidden)
    if not for_x:
        return dy.new_empty((0, dy.shape[1])), d_hidden
    return add_residual(product_grad(d_hidden, down_weight, down_packed), dy), d_hidden
