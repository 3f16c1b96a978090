"""Triton kernels of the gated linear map; `triton.py` beside this file launches them.

Forward and input gradient compute the transposed result, so that the masked weight is operand A of the tensor-core
product: Hopper reads A from registers, where the mask is applied, but B from shared memory only.
Offsets are 64-bit: strides may span more than 2^31 elements.
"""

# Triton derives the types of a kernel's arguments from the call, which type checkers cannot follow.
# ruff: noqa: ANN001, ANN201
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from tss_kernels.backends.triton import dot_operand, from_float32, to_float32
from tss_kernels.gates.triton_kernels import pack_gates


@triton.jit
def gate_numbers(gates_ptr, size, BITS: tl.constexpr, LOADED: tl.constexpr):
    """Return 0 .. BITS - 1, the positions of the gates in a word; `size` is not negative.

    LOADED: return them through a load that is always masked off. Triton moves a layout conversion from the operand of a
    product up to where its inputs are loaded, before the mask, but only if all of them are loads. A range is not a
    load: the masked weight would be stored to shared memory and loaded again. If several warps share the rows of
    operand A, this does not pay, because each would mask them all.
    """
    numbers = tl.arange(0, BITS)
    if LOADED:
        numbers = tl.load(gates_ptr + numbers, mask=numbers < -size, other=numbers).to(tl.int32)
    return numbers


@triton.jit
def select_columns(words, weight, numbers):
    """Select W * g: weight [OUT, IN], words of gates [OUT, IN / BITS]; bit i of a word is its column i."""
    bits = (words[:, :, None] >> numbers[None, None, :]) & 1
    return tl.where(tl.reshape(bits, weight.shape) != 0, weight, tl.zeros_like(weight))


@triton.jit
def select_rows(words, weight, numbers):
    """Select W * g transposed: weight [IN, OUT], words [IN / BITS, OUT]."""
    bits = (words[:, None, :] >> numbers[None, :, None]) & 1
    return tl.where(tl.reshape(bits, weight.shape) != 0, weight, tl.zeros_like(weight))


@triton.jit
def mask_kernel(
    weight_ptr,
    gates_ptr,
    masked_ptr,
    packed_ptr,
    threshold,
    in_features,
    out_features,
    row_words,
    BITS: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
):
    """Write an OUT x IN tile of W * g for the vendor's product, by words of gates or (BITS 0) scores, also packed."""
    in_tiles = tl.cdiv(in_features, IN)
    first = tl.program_id(0) % in_tiles * IN
    out = tl.program_id(0) // in_tiles * OUT + tl.arange(0, OUT)
    column = first + tl.arange(0, IN)
    out_mask = out < out_features
    mask = out_mask[:, None] & (column < in_features)[None, :]
    at = out.to(tl.int64)[:, None] * in_features + column[None, :]
    weight = tl.load(weight_ptr + at, mask=mask, other=0.0)
    if BITS == 0:
        on = tl.load(gates_ptr + at, mask=mask, other=float("nan")) >= threshold
        masked = tl.where(on, weight, tl.zeros_like(weight))
        pack_gates(gates_ptr, packed_ptr, threshold, in_features, out, out_mask, first, in_features, OUT, IN)
    else:
        word = first // BITS + tl.arange(0, IN // BITS)
        words_mask = out_mask[:, None] & (word < row_words)[None, :]
        words_at = out.to(tl.int64)[:, None] * row_words + word[None, :]
        words = tl.load(gates_ptr + words_at, mask=words_mask, other=0).to(tl.int32)
        masked = select_columns(words, weight, tl.arange(0, BITS))
    tl.store(masked_ptr + at, masked, mask=mask)


@triton.jit
def forward_sums(
    x_ptr,
    weight_ptr,
    gates_ptr,
    threshold,
    row,
    row_mask,
    out,
    out_mask,
    in_features,
    row_words,
    x_row_stride,
    x_column_stride,
    BITS: tl.constexpr,
    LOADED: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute (W * g) xᵀ [OUT, ROWS] of some outputs and rows: by words of BITS gates, or (0) scores at gates_ptr."""
    inner = tl.arange(0, IN)
    tl.assume(in_features > 0)
    if BITS != 0:
        numbers = gate_numbers(gates_ptr, in_features, BITS, LOADED)
        word = tl.arange(0, IN // BITS)
        words_at = out.to(tl.int64)[:, None] * row_words + word[None, :]
    weight_at = out.to(tl.int64)[:, None] * in_features + inner[None, :]
    x_at = row.to(tl.int64)[None, :] * x_row_stride + inner.to(tl.int64)[:, None] * x_column_stride
    zero = tl.full([], 0, tl.int64)  # widens `start`, which is a plain integer in the interpreter
    sums = tl.zeros([OUT, ROWS], tl.float32)
    for start in range(0, in_features, IN):
        inside = inner < in_features - start
        weight_mask = out_mask[:, None] & inside[None, :]
        weight = tl.load(weight_ptr + weight_at + start, mask=weight_mask, other=0.0)
        if BITS == 0:
            score = tl.load(gates_ptr + weight_at + start, mask=weight_mask, other=0.0)
            masked = tl.where(score >= threshold, weight, tl.zeros_like(weight))
        else:
            words_mask = out_mask[:, None] & (word < row_words - start // BITS)[None, :]
            words = tl.load(gates_ptr + words_at + start // BITS, mask=words_mask, other=0).to(tl.int32)
            masked = select_columns(words, weight, numbers)
        x_mask = inside[:, None] & row_mask[None, :]
        x = tl.load(x_ptr + x_at + (zero + start) * x_column_stride, mask=x_mask, other=0.0)
        sums = tl.dot(dot_operand(masked), dot_operand(x), sums, input_precision=PRECISION)
    return sums


@triton.jit
def forward_kernel(
    x_ptr,
    weight_ptr,
    gates_ptr,
    bias_ptr,
    y_ptr,
    packed_ptr,
    threshold,
    rows,
    in_features,
    out_features,
    row_words,
    x_row_stride,
    x_column_stride,
    HAS_BIAS: tl.constexpr,
    BITS: tl.constexpr,
    LOADED: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute one OUT x ROWS tile of the transposed output, by words of BITS gates, one load per word, or by scores.

    With BITS 0, gates_ptr points to the scores, and the row tiles of one output tile share the packing of its gates.
    """
    out_tiles = tl.cdiv(out_features, OUT)
    row_tiles = tl.num_programs(0) // out_tiles
    row_tile = tl.program_id(0) // out_tiles
    out = tl.program_id(0) % out_tiles * OUT + tl.arange(0, OUT)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    out_mask, row_mask = out < out_features, row < rows
    if BITS == 0:
        pack_gates(gates_ptr, packed_ptr, threshold, in_features, out, out_mask, row_tile * IN, row_tiles * IN, OUT, IN)
    sums = forward_sums(
        x_ptr, weight_ptr, gates_ptr, threshold, row, row_mask, out, out_mask, in_features, row_words,
        x_row_stride, x_column_stride, BITS, LOADED, PRECISION, OUT, IN, ROWS,
    )  # fmt: skip
    if HAS_BIAS:
        sums += to_float32(tl.load(bias_ptr + out, mask=out_mask, other=0.0))[:, None]
    y_at = row.to(tl.int64)[None, :] * out_features + out[:, None]
    y = from_float32(sums, y_ptr.dtype.element_ty)
    tl.store(y_ptr + y_at, y, mask=out_mask[:, None] & row_mask[None, :])


@triton.jit
def input_grad_sums(
    dy_ptr,
    weight_ptr,
    gates_ptr,
    row,
    row_mask,
    in_tile,
    column_mask,
    in_features,
    out_features,
    row_words,
    dy_row_stride,
    dy_column_stride,
    BITS: tl.constexpr,
    LOADED: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute (W * g)ᵀ dyᵀ [IN, ROWS] of one tile of columns and some rows, by words of BITS columns."""
    column = in_tile * IN + tl.arange(0, IN)
    word = in_tile * (IN // BITS) + tl.arange(0, IN // BITS)
    inner = tl.arange(0, OUT)
    tl.assume(out_features > 0)
    numbers = gate_numbers(gates_ptr, out_features, BITS, LOADED)
    weight_at = inner.to(tl.int64)[None, :] * in_features + column[:, None]
    gates_at = inner.to(tl.int64)[None, :] * row_words + word[:, None]
    dy_at = row.to(tl.int64)[None, :] * dy_row_stride + inner.to(tl.int64)[:, None] * dy_column_stride
    zero = tl.full([], 0, tl.int64)  # widens `start`, which is a plain integer in the interpreter
    sums = tl.zeros([IN, ROWS], tl.float32)
    for start in range(0, out_features, OUT):
        inside = inner < out_features - start
        first = zero + start
        weight_mask = column_mask[:, None] & inside[None, :]
        weight = tl.load(weight_ptr + weight_at + first * in_features, mask=weight_mask, other=0.0)
        gates_mask = (word < row_words)[:, None] & inside[None, :]
        words = tl.load(gates_ptr + gates_at + first * row_words, mask=gates_mask, other=0).to(tl.int32)
        dy_mask = inside[:, None] & row_mask[None, :]
        dy = tl.load(dy_ptr + dy_at + first * dy_column_stride, mask=dy_mask, other=0.0)
        masked = select_rows(words, weight, numbers)
        sums = tl.dot(dot_operand(masked), dot_operand(dy), sums, input_precision=PRECISION)
    return sums


@triton.jit
def input_grad_kernel(
    dy_ptr,
    weight_ptr,
    gates_ptr,
    dx_ptr,
    rows,
    in_features,
    out_features,
    row_words,
    dy_row_stride,
    dy_column_stride,
    BITS: tl.constexpr,
    LOADED: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute one IN x ROWS tile of the transposed input gradient, by words of BITS columns, one load per word."""
    in_tiles = tl.cdiv(in_features, IN)
    in_tile = tl.program_id(0) % in_tiles
    column = in_tile * IN + tl.arange(0, IN)
    row = tl.program_id(0) // in_tiles * ROWS + tl.arange(0, ROWS)
    column_mask, row_mask = column < in_features, row < rows
    sums = input_grad_sums(
        dy_ptr, weight_ptr, gates_ptr, row, row_mask, in_tile, column_mask, in_features, out_features, row_words,
        dy_row_stride, dy_column_stride, BITS, LOADED, PRECISION, OUT, IN, ROWS,
    )  # fmt: skip
    dx_at = row.to(tl.int64)[None, :] * in_features + column[:, None]
    dx = from_float32(sums, dx_ptr.dtype.element_ty)
    tl.store(dx_ptr + dx_at, dx, mask=column_mask[:, None] & row_mask[None, :])


@triton.jit
def partial_kernel(
    dy_ptr,
    x_ptr,
    partial_ptr,
    rows,
    split_rows,
    in_features,
    out_features,
    dy_row_stride,
    dy_column_stride,
    x_row_stride,
    x_column_stride,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute one OUT x IN tile of dYᵀ x over one range of `split_rows` rows, into its part of the workspace."""
    in_tiles = tl.cdiv(in_features, IN)
    tiles = in_tiles * tl.cdiv(out_features, OUT)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    out = tile // in_tiles * OUT + tl.arange(0, OUT)
    column = tile % in_tiles * IN + tl.arange(0, IN)
    inner = tl.arange(0, ROWS)
    dy_at = inner.to(tl.int64)[None, :] * dy_row_stride + out.to(tl.int64)[:, None] * dy_column_stride
    x_at = inner.to(tl.int64)[:, None] * x_row_stride + column.to(tl.int64)[None, :] * x_column_stride
    zero = tl.full([], 0, tl.int64)  # widens `start`, which is a plain integer in the interpreter
    sums = tl.zeros([OUT, IN], tl.float32)
    last = tl.minimum((split + 1) * split_rows, rows)
    for start in range(split * split_rows, last, ROWS):
        first = zero + start
        inside = inner < last - start
        dy_mask = (out < out_features)[:, None] & inside[None, :]
        dy = tl.load(dy_ptr + dy_at + first * dy_row_stride, mask=dy_mask, other=0.0)
        x_mask = inside[:, None] & (column < in_features)[None, :]
        x = tl.load(x_ptr + x_at + first * x_row_stride, mask=x_mask, other=0.0)
        sums = tl.dot(dot_operand(dy), dot_operand(x), sums, input_precision=PRECISION)
    at = (split.to(tl.int64) * out_features + out[:, None]) * in_features + column[None, :]
    tl.store(partial_ptr + at, sums, mask=(out < out_features)[:, None] & (column < in_features)[None, :])


@triton.jit
def reduce_kernel(
    partial_ptr,
    weight_ptr,
    importance_ptr,
    grad_ptr,
    size,
    HAS_IMPORTANCE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the row ranges in order, then multiply by the weight and by 1 - importance."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.load(partial_ptr + at, mask=mask, other=0.0)
    partial_at = at
    for _ in tl.static_range(1, SPLITS):
        partial_at += size
        total += tl.load(partial_ptr + partial_at, mask=mask, other=0.0)
    total *= to_float32(tl.load(weight_ptr + at, mask=mask, other=0.0))
    if HAS_IMPORTANCE:
        total *= 1.0 - to_float32(tl.load(importance_ptr + at, mask=mask, other=0.0))
    tl.store(grad_ptr + at, total, mask=mask)
