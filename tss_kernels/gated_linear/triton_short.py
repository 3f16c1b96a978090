"""Masked products that sum over few features: an adapter's up map, and the input gradient of its down map.

Such a product has one step, so there is nothing to load ahead within it: here one program computes several tiles of the
result for its rows, holds the rows on the chip, and meanwhile loads the weights of the next tile.
"""

# Triton derives the types of a kernel's arguments from the call, which type checkers cannot follow.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from tss_kernels.backends.tables import Tile
from tss_kernels.backends.tables.table import NARROW
from tss_kernels.backends.triton import dot_operand, dot_precision, from_float32, launch, to_float32
from tss_kernels.gated_linear.triton_kernels import gate_numbers, select_columns, select_rows


@triton.jit
def short_kernel(  # noqa: ANN201
    x_ptr,  # noqa: ANN001
    weight_ptr,  # noqa: ANN001
    gates_ptr,  # noqa: ANN001
    bias_ptr,  # noqa: ANN001
    y_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    summed,  # noqa: ANN001
    features,  # noqa: ANN001
    row_words,  # noqa: ANN001
    tiles,  # noqa: ANN001
    x_row_stride,  # noqa: ANN001
    x_column_stride,  # noqa: ANN001
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BITS: tl.constexpr,
    LOADED: tl.constexpr,
    PRECISION: tl.constexpr,
    FEATURES: tl.constexpr,
    SUMMED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute `tiles` FEATURES x ROWS tiles of (W * g) xᵀ, or if TRANSPOSED of (W * g)ᵀ xᵀ; SUMMED covers the sum."""
    row_tiles = tl.cdiv(rows, ROWS)
    row = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) // row_tiles * tiles * FEATURES
    last = tl.minimum(first + tiles * FEATURES, features)
    tl.assume(first < last)
    inner, tile = tl.arange(0, SUMMED), tl.arange(0, FEATURES)
    inside, row_mask = inner < summed, (row < rows)[None, :]
    numbers = gate_numbers(gates_ptr, summed, BITS, LOADED)
    if TRANSPOSED:
        word = tl.arange(0, FEATURES // BITS)
        weight_at = inner.to(tl.int64)[None, :] * features + tile[:, None]
        words_at = inner.to(tl.int64)[None, :] * row_words + word[:, None]
    else:
        word = tl.arange(0, SUMMED // BITS)
        weight_at = tile.to(tl.int64)[:, None] * summed + inner[None, :]
        words_at = tile.to(tl.int64)[:, None] * row_words + word[None, :]
    x_at = row.to(tl.int64)[None, :] * x_row_stride + inner.to(tl.int64)[:, None] * x_column_stride
    x = dot_operand(tl.load(x_ptr + x_at, mask=inside[:, None] & row_mask, other=0.0))
    y_at = row.to(tl.int64)[None, :] * features + tile[:, None]
    zero = tl.full([], 0, tl.int64)  # widens `start`, which is a plain integer in the interpreter
    for start in range(first, last, FEATURES):
        begin, covered = zero + start, tile < last - start
        weight_mask = covered[:, None] & inside[None, :]
        if TRANSPOSED:
            weight = tl.load(weight_ptr + weight_at + begin, mask=weight_mask, other=0.0)
            words_mask = (word < row_words - start // BITS)[:, None] & inside[None, :]
            words = tl.load(gates_ptr + words_at + begin // BITS, mask=words_mask, other=0).to(tl.int32)
            masked = select_rows(words, weight, numbers)
        else:
            weight = tl.load(weight_ptr + weight_at + begin * summed, mask=weight_mask, other=0.0)
            words_mask = covered[:, None] & (word < row_words)[None, :]
            words = tl.load(gates_ptr + words_at + begin * row_words, mask=words_mask, other=0).to(tl.int32)
            masked = select_columns(words, weight, numbers)
        y = tl.dot(dot_operand(masked), x, input_precision=PRECISION)
        if HAS_BIAS:
            y += to_float32(tl.load(bias_ptr + start + tile, mask=covered, other=0.0))[:, None]
        tl.store(y_ptr + y_at + begin, from_float32(y, y_ptr.dtype.element_ty), mask=covered[:, None] & row_mask)


def short_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    gates: torch.Tensor,
    bits: int,
    bias: torch.Tensor | None,
    transposed: bool,
    configuration: tuple[Tile, int],
) -> torch.Tensor:
    """Compute x (W * g)ᵀ + b, or if transposed x (W * g), by words of gates; nothing is empty and W is contiguous."""
    tile, tiles = configuration
    summed, features = weight.shape if transposed else weight.shape[::-1]
    y = torch.empty((x.shape[0], features), dtype=x.dtype, device=x.device)
    groups = triton.cdiv(features, tile.out * tiles)
    launch(
        short_kernel, triton.cdiv(x.shape[0], tile.rows) * groups,
        x, weight, gates, weight if bias is None else bias.contiguous(), y,
        x.shape[0], summed, features, gates.shape[1], tiles, x.stride(0), x.stride(1),
        TRANSPOSED=transposed, HAS_BIAS=bias is not None, BITS=bits, LOADED=tile.out >= 16 * tile.warps,
        PRECISION=dot_precision(), FEATURES=tile.out, SUMMED=NARROW, ROWS=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
