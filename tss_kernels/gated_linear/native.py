"""The gated linear map in C++: one pass masks the weight, and PyTorch's BLAS multiplies.

One more pass applies the last factors of the score gradient. The products are the reference's, with the same operands,
and have its bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd.function import once_differentiable

from tss_kernels.backends.native import described, kernels
from tss_kernels.gated_linear import reference
from tss_kernels.gates import reference as gates
from tss_kernels.tensors import DTYPE_CODES, address, empty_packed


def forward(
    x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and the packed gates as `reference.forward` does."""
    if not (weight.is_contiguous() and scores.is_contiguous()):
        # Rare. The reference runs because the order of a product's sums depends on its operands' memory layout.
        return reference.forward(x, weight, scores, bias, threshold)
    (rows, columns), masked, packed = weight.shape, torch.empty_like(weight), empty_packed(weight)
    kernels.mask_by_scores(
        weight.data_ptr(), masked.data_ptr(), weight.itemsize, scores.data_ptr(), DTYPE_CODES[scores.dtype], threshold,
        packed.data_ptr(), rows, columns, torch.get_num_threads(),
    )  # fmt: skip
    return torch.nn.functional.linear(x, masked, bias), packed


class _MaskedByScores(torch.autograd.Function):
    """W * g as a function of the scores, with a straight-through gradient: dYᵀ x is passed on to the scores."""

    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, weight: torch.Tensor, threshold: float, importance: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, importance)
        (rows, columns), masked, scores = weight.shape, torch.empty_like(weight), scores.contiguous()
        kernels.mask_by_scores(
            weight.data_ptr(), masked.data_ptr(), weight.itemsize, scores.data_ptr(), DTYPE_CODES[scores.dtype],
            threshold, 0, rows, columns, torch.get_num_threads(),
        )  # fmt: skip
        return masked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, product: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, importance = ctx.saved_tensors
        if is_legacy_batchedtensor(product) or is_functorch_wrapped_tensor(product):  # these have no address
            return reference.scores_grad_of(product, weight, importance), None, None, None
        return _scores_grad_of(product, weight, importance), None, None, None


# (scores, weight, threshold, importance) -> W * g of a contiguous weight, with a gradient for scores that require one.
# This is Function.apply of C: that of Python only checks for active transforms; where this is called there are none.
masked_by_scores = super(torch.autograd.Function, _MaskedByScores).apply  # type: ignore[misc]


def masked_by_bits(weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Return W * g of weight (out, in) from packed uint8 (out, ceil(in / 8))."""
    rows, columns = weight.shape
    if not weight.is_contiguous():
        return gates.masked(weight, gates.unpack_gates(packed, columns))
    packed, masked = packed.contiguous(), torch.empty_like(weight)
    kernels.mask_by_bits(
        weight.data_ptr(), masked.data_ptr(), weight.itemsize, packed.data_ptr(), rows, columns,
        torch.get_num_threads(),
    )  # fmt: skip
    return masked


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Compute x @ (W * g).T + bias: x (rows, in), weight (out, in), packed uint8 (out, ceil(in / 8)), bias (out,)."""
    return torch.nn.functional.linear(x, masked_by_bits(weight, packed), bias)


def input_grad(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Compute dL/dx = dY (W * g): dy (rows, out); weight (out, in); packed as from `forward`. Returns (rows, in)."""
    return dy @ masked_by_bits(weight, packed)


def scores_grad(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """Compute dL/ds = (dYᵀ x) * W * (1 - I) in float32, with the reference's product: dy (rows, out); x (rows, in)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return _scores_grad_of(dy.to(wide).T @ x.to(wide), weight, importance)


def _scores_grad_of(product: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    """Compute dL/ds from the product dYᵀ x, float32 or float64."""
    product = product.contiguous()
    grad = torch.empty_like(product, dtype=torch.float32)  # autograd forbids writing to the gradient that it passes
    weight = weight.contiguous()
    importance = None if importance is None else importance.contiguous()
    kernels.scores_grad(
        product.data_ptr(), DTYPE_CODES[product.dtype], weight.data_ptr(), DTYPE_CODES[weight.dtype],
        address(importance), 0 if importance is None else DTYPE_CODES[importance.dtype],
        grad.data_ptr(), grad.numel(), torch.get_num_threads(),
    )  # fmt: skip
    return grad


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the products run."""
    del op, device, dtype, shape
    return described("W * g written once, then PyTorch's product")
