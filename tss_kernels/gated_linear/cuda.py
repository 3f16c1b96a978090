"""The gated linear map in CUDA C++; csrc/cuda/gated_linear.cu and scores_grad.cu have the kernels.

What runs is a function only of architecture, dtype, shape and alignment. Every sum has a fixed order, so equal inputs
give equal bits.
"""

from __future__ import annotations

import torch

from tss_kernels.backends.cuda import kernels, target
from tss_kernels.backends.tables.cuda import FLOAT32, GENERAL, SMALL, Tiling, cuda_table, has_warpgroups, tiling_for
from tss_kernels.backends.tables.table import Masking, materialises
from tss_kernels.backends.tile_choice import COMPARING_TILES
from tss_kernels.tensors import DTYPE_CODES, address, empty_packed

CHUNK = 8  # 16-bit elements copied at once
K_TILE = 64  # summed features that a block processes at a time
COMPARING = (SMALL, GENERAL, FLOAT32)  # tilings whose kernels can compare scores themselves


def is_aligned(activations: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether rows of both start on 16-byte boundaries and their columns are contiguous."""
    row_stride, column_stride = activations.stride()
    return (
        column_stride == 1
        and row_stride * activations.element_size() % 16 == 0
        and weight.shape[1] % CHUNK == 0
        and activations.data_ptr() % 16 == 0
        and weight.data_ptr() % 16 == 0
    )


def masked_weight(
    weight: torch.Tensor, packed: torch.Tensor, scores: torch.Tensor | None = None, threshold: float = 0.0
) -> torch.Tensor:
    """Return W * g in W's dtype, by packed gates, or by scores (out, in), which also writes their gates to `packed`."""
    masked = torch.empty_like(weight)
    kernels(weight.device).mask_weight(
        address(scores), packed.data_ptr(), weight.data_ptr(), masked.data_ptr(), *weight.shape, weight.element_size(),
        threshold, *target(weight.device),
    )  # fmt: skip
    return masked


def _launch(
    activations: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    transposed: bool,
    tiling: Tiling,
    ranges: int,
    scores: torch.Tensor | None = None,
    threshold: float = 0.0,
) -> torch.Tensor:
    (rows, summed), features = activations.shape, weight.shape[1] if transposed else weight.shape[0]
    result = torch.empty((rows, features), dtype=activations.dtype, device=activations.device)
    partial = None
    if ranges > 1 and rows:
        partial = torch.empty((ranges, rows, features), dtype=torch.float32, device=weight.device)
    kernels(weight.device).gated_product(
        activations.data_ptr(), activations.shape[0], *activations.stride(), weight.data_ptr(), *weight.shape,
        packed.data_ptr(), address(scores), threshold, address(bias), result.data_ptr(), transposed, tiling.number,
        address(partial), -(-summed // (K_TILE * ranges)), DTYPE_CODES[weight.dtype], *target(weight.device),
    )  # fmt: skip
    return result


def _product(
    activations: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    product: Masking,
    tiling: Tiling | None,
    materialise: bool | None,
    ranges: int,
) -> torch.Tensor:
    """Compute x (W * g)ᵀ + b or dy (W * g) by packed gates; ranges: with a given tiling, the number of sum ranges."""
    transposed, device = product == "input_grad", activations.device
    weight, packed = weight.contiguous(), packed.contiguous()
    rows, (out_features, in_features) = activations.shape[0], weight.shape
    aligned = is_aligned(activations, weight)
    if materialise is None:
        materialise, _ = materialises(
            cuda_table(device), product, weight.dtype, rows, in_features, out_features, aligned
        )
    if materialise:
        masked = masked_weight(weight, packed)
        return activations @ masked if transposed else torch.nn.functional.linear(activations, masked, bias)
    if tiling is None:
        features = in_features if transposed else out_features
        tiling, ranges = tiling_for(weight.dtype, rows, activations.shape[1], features, aligned, has_warpgroups(device))
    return _launch(activations, weight, packed, None if bias is None else bias.contiguous(), transposed, tiling, ranges)


def forward(
    x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute y = x @ where(scores >= threshold, weight, 0).T + bias; also return the gates, for the backward pass.

    x (rows, in) with any strides; weight (out, in) of x's dtype; scores (out, in) float32; bias (out,) or None. Returns
    y (rows, out) of x's dtype and uint8 (out, ceil(in / 8)).
    """
    rows, (out_features, in_features), device = x.shape[0], weight.shape, x.device
    weight, scores = weight.contiguous(), scores.contiguous()
    packed = empty_packed(weight)
    aligned = is_aligned(x, weight)
    materialise, _ = materialises(cuda_table(device), "forward", weight.dtype, rows, in_features, out_features, aligned)
    if materialise:
        return torch.nn.functional.linear(x, masked_weight(weight, packed, scores, threshold), bias), packed
    tiling, ranges = tiling_for(weight.dtype, rows, in_features, out_features, aligned, has_warpgroups(device))
    if rows > COMPARING_TILES * SMALL.rows or tiling not in COMPARING:
        kernels(device).pack_gates(
            scores.data_ptr(), packed.data_ptr(), out_features, in_features, 0, 0, 0, 0, DTYPE_CODES[scores.dtype],
            threshold, *target(device),
        )  # fmt: skip
        return _product(x, weight, packed, bias, "forward", tiling, False, ranges), packed
    bias = None if bias is None else bias.contiguous()
    return _launch(x, weight, packed, bias, False, tiling, ranges, scores, threshold), packed


def packed_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    tiling: Tiling | None = None,
    materialise: bool | None = None,
    ranges: int = 1,
) -> torch.Tensor:
    """Compute the same y from packed gates, uint8 (out, ceil(in / 8)).

    tiling (with its ranges), materialise: None uses the table's.
    """
    return _product(x, weight, packed, bias, "forward", tiling, materialise, ranges)


def input_grad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    tiling: Tiling | None = None,
    materialise: bool | None = None,
    ranges: int = 1,
) -> torch.Tensor:
    """Compute dx = dy @ (weight * gate): dy (rows, out) with any strides; returns (rows, in) of dy's dtype."""
    return _product(dy, weight, packed, None, "input_grad", tiling, materialise, ranges)


def scores_grad(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """Compute the scores' straight-through gradient (dyᵀ x) * weight * (1 - importance), for on and off entries alike.

    dy (rows, out) and x (rows, in) with any strides; weight (out, in); importance (out, in) in [0, 1] or None. Returns
    float32 (out, in). Rows are summed in ranges, and the ranges in order: no atomics, equal bits every time.
    """
    (rows, out_features), in_features, device = dy.shape, x.shape[1], x.device
    grad = torch.empty((out_features, in_features), dtype=torch.float32, device=device)
    if importance is not None:
        importance = importance.to(torch.float32).contiguous()
    weight, module = weight.contiguous(), kernels(device)
    range_rows = module.scores_grad_range_rows(rows, out_features, in_features)
    ranges = max(1, -(-rows // range_rows))
    partial = torch.empty((ranges, *grad.shape), dtype=torch.float32, device=device) if ranges > 1 else None
    module.scores_grad(
        dy.data_ptr(), *dy.stride(), x.data_ptr(), *x.stride(), rows, out_features, in_features, weight.data_ptr(),
        address(importance), grad.data_ptr(), address(partial), range_rows, DTYPE_CODES[x.dtype], *target(device),
    )  # fmt: skip
    return grad


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the forward product of shape (rows, in, out) runs, and why."""
    del op
    rows, in_features, out_features = shape
    aligned = in_features % CHUNK == 0
    chosen, why = materialises(cuda_table(device), "forward", dtype, rows, in_features, out_features, aligned)
    if chosen:
        return f"W * g written once, then the vendor's product; {why}"
    tiling, ranges = tiling_for(dtype, rows, in_features, out_features, aligned, has_warpgroups(device))
    cut = "" if ranges == 1 else f", {ranges} ranges of what is summed, added by a second launch"
    return f"{tiling.name} blocks of {tiling.features} features x {tiling.rows} rows{cut}; {why}"
