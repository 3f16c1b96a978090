"""pack_gates, unpack_gates and packed_linear: checks, the registered operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tss_kernels.autocast import autocast_inputs, outside_autocast
from tss_kernels.checks import check_floating, check_linear, check_packed, check_threshold, check_untransformed
from tss_kernels.dispatch import implementation, select
from tss_kernels.gated_linear import composed
from tss_kernels.gated_linear.api import bias_grad, input_grad_operator, weight_grad_operator
from tss_kernels.gates.scores import keep_gates, kept_gates
from tss_kernels.operators import implement, rows_of, shaped_like


def _pack_gates(scores: torch.Tensor, threshold: float, backend: str) -> torch.Tensor:
    return implementation("gates", backend).pack_gates(scores, threshold)


def _pack_gates_pair(
    first: torch.Tensor, second: torch.Tensor, threshold: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return implementation("gates", backend).pack_gates_pair(first, second, threshold)


def _unpack_gates(packed: torch.Tensor, in_features: int, backend: str) -> torch.Tensor:
    return implementation("gates", backend).unpack_gates(packed, in_features)


@outside_autocast
def _packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, backend: str
) -> torch.Tensor:
    y = implementation("gates", backend).packed_linear(rows_of(x), weight, packed, bias)
    return shaped_like(y, x.shape[:-1])


_pack_gates_operator = implement("pack_gates", _pack_gates)
_pack_gates_pair_operator = implement("pack_gates_pair", _pack_gates_pair)
_unpack_gates_operator = implement("unpack_gates", _unpack_gates)
_packed_linear_operator = implement("packed_linear", _packed_linear)


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        packed: torch.Tensor,
        bias: torch.Tensor | None,
        backend: str,
        backward_backend: str,
    ) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, packed)
        ctx.backend = backward_backend
        return _packed_linear_operator(x, weight, packed, bias, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, packed = ctx.saved_tensors
        for_x, for_weight, _, for_bias = ctx.needs_input_grad[:4]
        return (
            input_grad_operator(dy, weight, packed, ctx.backend) if for_x else None,
            weight_grad_operator(dy, x, packed, ctx.backend) if for_weight else None,
            None,
            bias_grad(dy) if for_bias else None,
            None,
            None,
        )


def pack_gates(scores: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """The gates scores >= threshold at one bit each: bit i of byte j is column 8 j + i, rows padded with 0.

    scores (out, in) of any floating dtype; NaN gives 0. Returns uint8 (out, ceil(in / 8)). Raises ValueError and
    TypeError.
    """
    if scores.dim() != 2:
        raise ValueError(f"scores must be (out, in), two dimensions, but have shape {tuple(scores.shape)}")
    check_floating("scores", scores)
    check_threshold(threshold)
    return _pack_gates_operator(scores.detach(), threshold, select("pack_gates", scores.device, scores.dtype))


def gates_of_pair(
    first: torch.Tensor, second: torch.Tensor, threshold: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed gates of two score matrices (out, in) for an operation of this backend, compared if not known."""
    known = kept_gates(first, threshold, backend), kept_gates(second, threshold, backend)
    if known[0] is not None and known[1] is not None:
        return known[0], known[1]
    packing = select("pack_gates", first.device, first.dtype)
    packed = _pack_gates_pair_operator(first.detach(), second.detach(), threshold, packing)
    keep_gates(first, threshold, backend, packed[0])
    keep_gates(second, threshold, backend, packed[1])
    return packed


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """The opposite of pack_gates: packed uint8 (out, ceil(in_features / 8)) to bool (out, in_features).

    Raises TypeError and ValueError.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed gates must be uint8 but are {packed.dtype}: make them with pack_gates")
    if packed.dim() != 2 or in_features < 0 or packed.shape[1] != (in_features + 7) // 8:
        raise ValueError(
            f"packed gates of in_features = {in_features} must have shape (out, {(in_features + 7) // 8}) but have "
            f"{tuple(packed.shape)}"
        )
    return _unpack_gates_operator(packed, in_features, select("unpack_gates", packed.device, packed.dtype))


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y = x @ where(gate, weight, 0).T + bias, the same product as gated_linear, from gates at one bit each.

    x (..., in); weight (out, in) of x's dtype; packed uint8 (out, ceil(in / 8)); bias (out,) or None; (..., out).
    Gradients for x, bias, and weight if it asks for one; differentiable once. Raises TypeError, ValueError.
    """
    return packed_linear_of(x, weight, packed, bias)


def packed_linear_of(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    kept: composed.KeptProduct | None = None,
) -> torch.Tensor:
    """`packed_linear` with the room of a layer for its masked weight."""
    masked = None if kept is None else kept.masked_again(x, weight, packed, bias, None, 0.0)
    if masked is not None:
        return composed.product(x, masked, bias)
    x, weight, bias = autocast_inputs(x, weight, bias)
    check_linear(x, weight, bias)
    check_packed(packed, weight)
    backend = select("packed_linear", x.device, x.dtype)
    if composed.composes(backend, x, weight, packed):
        masked = composed.masked_by_gates(weight, packed, kept)
        if kept is not None:
            kept.fitted(weight, packed, bias, None)
        return composed.product(x, masked, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        check_untransformed()
        return _PackedLinear.apply(x, weight, packed, bias, backend, select("gated_linear", x.device, x.dtype))
    return _packed_linear_operator(x, weight, packed, bias, backend)
