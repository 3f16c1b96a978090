"""Packed gates: checks, registered operators, autograd."""

from __future__ import annotations

from typing import Any

import torch

from tss_kernels import checks, dispatch
from tss_kernels.autocast import cast_operands
from tss_kernels.operators import register


def _pack(scores: torch.Tensor, threshold: float, backend: str) -> torch.Tensor:
    return dispatch.load("pack_gates", backend).pack_gates(scores, threshold)


def _pack_fake(scores: torch.Tensor, threshold: float, backend: str) -> torch.Tensor:
    return scores.new_empty((scores.shape[0], (scores.shape[1] + 7) // 8), dtype=torch.uint8)


def _unpack(packed: torch.Tensor, in_features: int, backend: str) -> torch.Tensor:
    return dispatch.load("unpack_gates", backend).unpack_gates(packed, in_features)


def _unpack_fake(packed: torch.Tensor, in_features: int, backend: str) -> torch.Tensor:
    return packed.new_empty((packed.shape[0], in_features), dtype=torch.bool)


def _linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, backend: str
) -> torch.Tensor:
    return dispatch.load("packed_linear", backend).packed_linear(x, weight, packed, bias)


def _linear_fake(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, backend: str
) -> torch.Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _input_grad(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, backend: str) -> torch.Tensor:
    return dispatch.load("packed_linear", backend).input_grad(dy, weight, packed)


def _input_grad_fake(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, backend: str) -> torch.Tensor:
    return dy.new_empty((dy.shape[0], weight.shape[1]))


_pack_op = register("pack_gates(Tensor scores, float threshold, str backend) -> Tensor", _pack, _pack_fake)
_unpack_op = register("unpack_gates(Tensor packed, int in_features, str backend) -> Tensor", _unpack, _unpack_fake)
_linear_op = register(
    "packed_linear(Tensor x, Tensor weight, Tensor packed, Tensor? bias, str backend) -> Tensor", _linear, _linear_fake
)
_input_grad_op = register(
    "packed_linear_input_grad(Tensor dy, Tensor weight, Tensor packed, str backend) -> Tensor",
    _input_grad,
    _input_grad_fake,
)


class PackedLinearFunction(torch.autograd.Function):
    """The linear map from packed gates on rows; gradients for x and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        packed: torch.Tensor,
        bias: torch.Tensor | None,
        backend: str,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, packed)
        ctx.backend = backend
        return _linear_op(x, weight, packed, bias, backend)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        weight, packed = ctx.saved_tensors
        dx = _input_grad_op(dy, weight, packed, ctx.backend) if ctx.needs_input_grad[0] else None
        return dx, None, None, dy.sum(0) if ctx.needs_input_grad[3] else None, None


def pack_gates(scores: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """The gates 1[scores >= threshold] as bits: bit i of byte j of a row is column 8 j + i, rows padded with 0.

    Args:
        scores: (out, in), floating; NaN gives 0.
        threshold: a gate is on where its score is at least this.

    Returns:
        uint8 (out, ceil(in / 8)).

    Raises:
        ValueError: scores that are not a matrix.
    """
    if scores.dim() != 2:
        raise ValueError(f"pack_gates: scores must be (out, in), got shape {tuple(scores.shape)}")
    backend = dispatch.backend_for("pack_gates", scores.device.type, scores.dtype)
    return _pack_op(scores, float(threshold), backend)


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """The bits of `pack_gates` as bool (out, in_features).

    Raises:
        ValueError, TypeError: if packed is not uint8 (out, ceil(in_features / 8)).
    """
    if packed.dim() != 2:
        raise ValueError(f"unpack_gates: packed gates must be (out, bytes), got shape {tuple(packed.shape)}")
    checks.check_packed("unpack_gates", packed, packed.shape[0], in_features)
    backend = dispatch.backend_for("unpack_gates", packed.device.type, torch.float32)
    return _unpack_op(packed, in_features, backend)


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y = x @ (weight * gate).T + bias with the gates as bits; differentiable in x and bias.

    Args:
        x: (..., in), floating.
        weight: (out, in), x's dtype.
        packed: uint8 (out, ceil(in / 8)), as `pack_gates` writes it.
        bias: (out,), weight's dtype, or None.

    Returns:
        (..., out) in x's dtype.

    Raises:
        ValueError, TypeError: shapes, devices or dtypes that do not fit.
    """
    x, weight, bias = cast_operands(x, weight, bias)
    checks.check_linear("packed_linear", x, weight, bias)
    checks.check_packed("packed_linear", packed, *weight.shape)
    checks.check_same_device("packed_linear", x=x, weight=weight, packed=packed, bias=bias)
    backend = dispatch.backend_for("packed_linear", x.device.type, x.dtype)
    y = PackedLinearFunction.apply(x.reshape(-1, weight.shape[1]), weight, packed, bias, backend)
    return y.reshape(*x.shape[:-1], weight.shape[0])
