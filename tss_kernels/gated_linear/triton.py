"""The gated linear map in Triton: product, input gradient and score gradient, each with its mask inside the kernel.

The launch configuration is a function only of architecture, dtype and shape (`triton_tiles.py`); if the tables in
`backends/tables` say that it wins, W * g is written once and the vendor's product runs on it. Every sum has a fixed
order that depends only on shapes and strides, so equal inputs give equal bits.
"""

from __future__ import annotations

import torch
import triton

from tss_kernels.backends.tables import Tile, table_for
from tss_kernels.backends.tile_choice import COMPARING_TILES
from tss_kernels.backends.triton import dot_precision, launch
from tss_kernels.gated_linear.triton_kernels import (
    forward_kernel,
    input_grad_kernel,
    mask_kernel,
    partial_kernel,
    reduce_kernel,
)
from tss_kernels.gated_linear.triton_short import short_product
from tss_kernels.gated_linear.triton_tiles import (
    Strategy,
    forward_tile,
    input_grad_tile,
    is_aligned,
    is_short,
    loads_numbers_by,
    scores_grad_tile,
    short_tile,
    strategy_for,
)
from tss_kernels.gates.triton import pack_gates
from tss_kernels.tensors import empty_packed

REDUCE_BLOCK = 256
MASK_TILE = (16, 128)  # out, in


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the forward product of shape (rows, in, out) runs, and why."""
    del op
    rows, in_features, out_features = shape
    table, aligned = table_for(device), in_features % 16 == 0 and out_features % 16 == 0
    strategy, why = strategy_for(table, "forward", dtype, rows, in_features, out_features, aligned)
    if strategy == "materialise":
        return f"W * g written once, then the vendor's product; {why}"
    tile = forward_tile(table, dtype, rows, in_features, out_features, aligned)
    if triton.cdiv(rows, tile.rows) > COMPARING_TILES and is_short(dtype, in_features, aligned):
        tile, tiles = short_tile(table, dtype, rows, in_features, out_features)
        return f"{tile}, {tiles} of them a program; {why}"
    return f"{tile}; {why}"


def gate_words(packed: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return gates as 32-bit words if rows consist of whole words, else as bytes, and the number of gates in each."""
    packed = packed.contiguous()
    if packed.numel() > 0 and packed.shape[1] % 4 == 0 and packed.storage_offset() % 4 == 0:
        # Flattened first: a single row counts as contiguous whatever its stride, but a view as words checks the stride.
        return packed.reshape(-1).view(torch.int32).view(packed.shape[0], -1), 32
    return packed, 8


def _materialise(weight: torch.Tensor, gates: torch.Tensor, bits: int, packed: torch.Tensor, threshold: float
                 ) -> torch.Tensor:  # fmt: skip
    """Return W * g in W's dtype, contiguous; bits 0: `gates` are scores, and their gates are written to `packed`."""
    out_features, in_features = weight.shape
    masked = torch.empty_like(weight)
    out, inner = MASK_TILE
    programs = triton.cdiv(out_features, out) * triton.cdiv(in_features, inner)
    if programs:
        launch(
            mask_kernel, programs,
            weight, gates, masked, packed, threshold, in_features, out_features, gates.shape[1],
            BITS=bits, OUT=out, IN=inner, num_warps=4,
        )  # fmt: skip
    return masked


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    gates: torch.Tensor,
    bits: int,
    bias: torch.Tensor | None,
    packed: torch.Tensor,
    threshold: float,
    strategy: Strategy | None,
) -> torch.Tensor:
    """Compute y = x (W * g)ᵀ + b by words of gates, or (bits 0) by scores, whose gates are written to `packed`."""
    (rows, in_features), out_features = x.shape, weight.shape[0]
    if in_features == 0:
        zeros = torch.zeros((rows, out_features), dtype=x.dtype, device=x.device)
        return zeros if bias is None else zeros + bias
    weight = weight.contiguous()
    aligned, table = is_aligned((in_features, out_features), x), table_for(x.device)
    if strategy is None:
        strategy, _ = strategy_for(table, "forward", x.dtype, rows, in_features, out_features, aligned)
    if strategy == "materialise":
        return torch.nn.functional.linear(x, _materialise(weight, gates, bits, packed, threshold), bias)
    y = torch.empty((rows, out_features), dtype=x.dtype, device=x.device)
    # With scores and no rows, one row tile still runs, to write the gates.
    tiled_rows = rows if bits else max(1, rows)
    if out_features == 0 or tiled_rows == 0:
        return y
    tile = forward_tile(table, x.dtype, rows, in_features, out_features, aligned)
    if triton.cdiv(rows, tile.rows) > COMPARING_TILES:
        if not bits:
            pack_gates(gates, threshold, packed)
            gates, bits = gate_words(packed)
        if is_short(x.dtype, in_features, aligned):
            configuration = short_tile(table, x.dtype, rows, in_features, out_features)
            return short_product(x, weight, gates, bits, bias, False, configuration)
    launch(
        forward_kernel, triton.cdiv(out_features, tile.out) * triton.cdiv(tiled_rows, tile.rows),
        x, weight, gates, weight if bias is None else bias.contiguous(), y, packed, threshold,
        rows, in_features, out_features, gates.shape[1], x.stride(0), x.stride(1),
        HAS_BIAS=bias is not None, BITS=bits, LOADED=loads_numbers_by(table, tile.out, tile.warps),
        PRECISION=dot_precision(), OUT=tile.out, IN=tile.inner, ROWS=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float,
    strategy: Strategy | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute y = x @ where(scores >= threshold, weight, 0).T + bias; also return the gates, for the backward pass.

    x (rows, in) with any strides; weight (out, in) of x's dtype; scores (out, in) float32; bias (out,) or None;
    strategy: None uses the table's. Returns y (rows, out) of x's dtype and uint8 (out, ceil(in / 8)): bit i of byte j
    is column 8 j + i, padding is 0.
    """
    packed = empty_packed(weight)
    return _product(x, weight, scores.contiguous(), 0, bias, packed, float(threshold), strategy), packed


def packed_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    strategy: Strategy | None = None,
) -> torch.Tensor:
    """Compute the same y, bit-identical, from packed gates of `forward` or pack_gates: uint8 (out, ceil(in / 8))."""
    gates, bits = gate_words(packed)
    return _product(x, weight, gates, bits, bias, packed, 0.0, strategy)


def input_grad(
    dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, strategy: Strategy | None = None
) -> torch.Tensor:
    """Compute dx = dy @ (weight * gate) from packed gates; an off entry adds exactly 0 whatever its weight.

    dy (rows, out) with any strides; weight (out, in) of dy's dtype; packed uint8 (out, ceil(in / 8)) as from `forward`.
    Returns dx (rows, in) of dy's dtype.
    """
    (rows, out_features), in_features = dy.shape, weight.shape[1]
    weight = weight.contiguous()
    gates, bits = gate_words(packed)
    aligned, table = is_aligned((in_features, out_features), dy), table_for(dy.device)
    if strategy is None:
        strategy, _ = strategy_for(table, "input_grad", dy.dtype, rows, in_features, out_features, aligned)
    if strategy == "materialise":
        return dy @ _materialise(weight, gates, bits, packed, 0.0)
    dx = torch.empty((rows, in_features), dtype=dy.dtype, device=dy.device)
    if dx.numel() == 0 or out_features == 0:
        return dx.zero_()
    if is_short(dy.dtype, out_features, aligned):
        configuration = short_tile(table, dy.dtype, rows, out_features, in_features)
        return short_product(dy, weight, gates, bits, None, True, configuration)
    tile = input_grad_tile(table, dy.dtype, rows, in_features, out_features, aligned)
    launch(
        input_grad_kernel, triton.cdiv(in_features, tile.inner) * triton.cdiv(rows, tile.rows),
        dy, weight, gates, dx,
        rows, in_features, out_features, gates.shape[1], dy.stride(0), dy.stride(1),
        BITS=bits, LOADED=loads_numbers_by(table, tile.inner, tile.warps),
        PRECISION=dot_precision(), OUT=tile.out, IN=tile.inner, ROWS=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dx


def _vendor_outer(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Compute dyᵀ x by the vendor's product: (1, out, in), summed and returned in float32 for any dtype of dy and x."""
    if x.dtype == torch.float32 or x.device.type == "cpu":  # PyTorch has the mixed-dtype product only on GPUs
        return (dy.float().t() @ x.float())[None]
    return torch.mm(dy.t(), x, out_dtype=torch.float32)[None]


def _partial_outer(dy: torch.Tensor, x: torch.Tensor, tile: Tile, splits: int) -> torch.Tensor:
    """Compute dyᵀ x over `splits` ranges of rows: (splits, out, in) in float32."""
    (rows, out_features), in_features = dy.shape, x.shape[1]
    partial = torch.empty((splits, out_features, in_features), dtype=torch.float32, device=x.device)
    split_rows = triton.cdiv(triton.cdiv(rows, splits), tile.rows) * tile.rows
    tiles = triton.cdiv(out_features, tile.out) * triton.cdiv(in_features, tile.inner)
    launch(
        partial_kernel, tiles * splits,
        dy, x, partial,
        rows, split_rows, in_features, out_features, dy.stride(0), dy.stride(1), x.stride(0), x.stride(1),
        PRECISION=dot_precision(), OUT=tile.out, IN=tile.inner, ROWS=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial


def scores_grad(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    importance: torch.Tensor | None,
    strategy: Strategy | None = None,
) -> torch.Tensor:
    """Compute the scores' straight-through gradient (dyᵀ x) * weight * (1 - importance), for on and off entries alike.

    dy (rows, out) and x (rows, in) with any strides; weight (out, in); importance (out, in) in [0, 1] or None;
    strategy: None uses the table's, "materialise" the vendor's product of dyᵀ and x. Returns float32 (out, in). Rows
    are summed in ranges, and the ranges in order: no atomics, equal bits every time.
    """
    (rows, out_features), in_features = dy.shape, x.shape[1]
    grad = torch.empty((out_features, in_features), dtype=torch.float32, device=x.device)
    if grad.numel() == 0:
        return grad
    aligned, table = is_aligned((in_features, out_features), dy, x), table_for(x.device)
    if x.dtype == torch.float32 and 1 not in (dy.stride(1), x.stride(1)):
        aligned = False  # compiled, the larger tile runs out of registers
    if strategy is None:
        strategy, _ = strategy_for(table, "scores_grad", x.dtype, rows, in_features, out_features, aligned)
        # PyTorch may be allowed to sum float16 products in float16; the fused kernel's sums stay in float32.
        if x.dtype == torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation:
            strategy = "fused"
    if strategy == "materialise":
        partial = _vendor_outer(dy, x)
    else:
        partial = _partial_outer(dy, x, *scores_grad_tile(table, x.dtype, rows, in_features, out_features, aligned))
    splits, weight = partial.shape[0], weight.contiguous()
    launch(
        reduce_kernel, triton.cdiv(grad.numel(), REDUCE_BLOCK),
        partial, weight, weight if importance is None else importance.contiguous(), grad, grad.numel(),
        HAS_IMPORTANCE=importance is not None, SPLITS=splits, BLOCK=REDUCE_BLOCK, num_warps=4,
    )  # fmt: skip
    return grad
