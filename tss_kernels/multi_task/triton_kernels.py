"""Triton kernels of products whose rows belong to different tasks; `triton.py` beside this file launches them.

One small kernel sorts the entries of a batch by task and cuts each task's rows into tiles. The products run as those of
gated_linear, each tile by the gates of its task, on rows at any position.
Offsets are 64-bit: strides may span more than 2^31 elements.
"""

# Triton derives the types of a kernel's arguments from the call, which type checkers cannot follow.
# ruff: noqa: ANN001, ANN201
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from tss_kernels.backends.triton import from_float32, to_float32
from tss_kernels.gated_adapter.triton_kernels import activate, differentiate
from tss_kernels.gated_linear.triton_kernels import forward_sums, input_grad_sums


@triton.jit
def group_kernel(ids_ptr, order_ptr, tiles_ptr, entries, length, tasks, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Group entries by task, with one program per task and a last one for ids outside the bank.

    Writes order[entries], the entries sorted by task, in their order within a task, and tiles[.., 3] of up to ROWS rows
    of one task: the task (-1: no task), the first row among the rows of `order`, and the number of rows. Each task has
    as many tiles as it can need wherever its rows begin; unused ones have 0 rows.
    """
    task = tl.program_id(0)
    number = tl.arange(0, BLOCK)
    lower, own = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, entries, BLOCK):
        inside = number < entries - start
        id = tl.load(ids_ptr + start + number, mask=inside, other=0)
        id = tl.where((id >= 0) & (id < tasks), id, tasks)
        lower += (inside & (id < task)).to(tl.int32)
        own += (inside & (id == task)).to(tl.int32)
    zero = tl.full([], 0, tl.int64)
    first, count = zero + tl.sum(lower, 0), zero + tl.sum(own, 0)
    place = first
    for start in range(0, entries, BLOCK):
        inside = number < entries - start
        id = tl.load(ids_ptr + start + number, mask=inside, other=0)
        id = tl.where((id >= 0) & (id < tasks), id, tasks)
        mine = (inside & (id == task)).to(tl.int32)
        tl.store(order_ptr + place + tl.cumsum(mine, 0) - 1, zero + start + number, mask=mine != 0)
        place += tl.sum(mine, 0)
    first_tile = first * length // ROWS + tl.minimum(task, first)
    last_tile = (first + count) * length // ROWS + tl.minimum(task + 1, first + count)
    for start in range(first_tile, last_tile, BLOCK):
        tile = start + number
        row = first * length + (tile - first_tile) * ROWS
        left = tl.minimum(tl.maximum((first + count) * length - row, 0), ROWS)
        mask = tile < last_tile
        tl.store(tiles_ptr + 3 * tile, tl.where(task < tasks, task, -1) + tl.zeros_like(tile), mask=mask)
        tl.store(tiles_ptr + 3 * tile + 1, row, mask=mask)
        tl.store(tiles_ptr + 3 * tile + 2, left, mask=mask)


@triton.jit
def rows_of_tile(order_ptr, first, count, length, ROWS: tl.constexpr):
    """Return the row of each position in a tile, and a mask of the positions that have one."""
    number = tl.arange(0, ROWS)
    mask, sorted_row = number < count, first + number
    entry = tl.load(order_ptr + sorted_row // length, mask=mask, other=0)
    return entry * length + sorted_row % length, mask


@triton.jit
def multi_task_forward_kernel(
    x_ptr,
    weight_ptr,
    bank_ptr,
    bias_ptr,
    y_ptr,
    hidden_ptr,
    residual_ptr,
    order_ptr,
    tiles_ptr,
    length,
    in_features,
    out_features,
    task_words,
    row_words,
    x_row_stride,
    x_column_stride,
    residual_row_stride,
    residual_column_stride,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    KEEPS_RESULT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BITS: tl.constexpr,
    LOADED: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute one OUT x ROWS tile of the transposed output, of rows of one task; rows of no task are NaN.

    ACTIVATION, unless "": y is the activation's result, and its argument is written to `hidden` unless KEEPS_RESULT.
    """
    out_tiles = tl.cdiv(out_features, OUT)
    tile = tiles_ptr + 3 * (tl.program_id(0) // out_tiles).to(tl.int64)
    task, count = tl.load(tile), tl.load(tile + 2)
    if count == 0:
        return
    out = tl.program_id(0) % out_tiles * OUT + tl.arange(0, OUT)
    row, row_mask = rows_of_tile(order_ptr, tl.load(tile + 1), count, length, ROWS)
    out_mask = out < out_features
    sums = forward_sums(
        x_ptr, weight_ptr, bank_ptr + tl.maximum(task, 0) * task_words, 0.0, row, row_mask, out,
        out_mask, in_features, row_words, x_row_stride, x_column_stride, BITS, LOADED, PRECISION, OUT, IN, ROWS,
    )  # fmt: skip
    if HAS_BIAS:
        sums += to_float32(tl.load(bias_ptr + out, mask=out_mask, other=0.0))[:, None]
    sums = tl.where(task >= 0, sums, float("nan"))
    y_at = row[None, :] * out_features + out[:, None]
    mask = out_mask[:, None] & row_mask[None, :]
    if ACTIVATION != "":
        if not KEEPS_RESULT:
            hidden = from_float32(sums, hidden_ptr.dtype.element_ty)
            tl.store(hidden_ptr + y_at, hidden, mask=mask)
            sums = to_float32(hidden)
        sums = activate(sums, ACTIVATION)
    if HAS_RESIDUAL:
        residual_at = row[None, :] * residual_row_stride + out.to(tl.int64)[:, None] * residual_column_stride
        sums += to_float32(tl.load(residual_ptr + residual_at, mask=mask, other=0.0))
    tl.store(y_ptr + y_at, from_float32(sums, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def multi_task_input_grad_kernel(
    dy_ptr,
    weight_ptr,
    bank_ptr,
    dx_ptr,
    hidden_ptr,
    residual_ptr,
    order_ptr,
    tiles_ptr,
    length,
    in_features,
    out_features,
    task_words,
    row_words,
    dy_row_stride,
    dy_column_stride,
    residual_row_stride,
    residual_column_stride,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BITS: tl.constexpr,
    LOADED: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute one IN x ROWS tile of the transposed input gradient, of rows of one task; rows of no task are NaN.

    ACTIVATION, unless "": multiply the gradient by the activation's derivative, computed from `hidden`.
    """
    in_tiles = tl.cdiv(in_features, IN)
    tile = tiles_ptr + 3 * (tl.program_id(0) // in_tiles).to(tl.int64)
    task, count = tl.load(tile), tl.load(tile + 2)
    if count == 0:
        return
    in_tile = tl.program_id(0) % in_tiles
    column = in_tile * IN + tl.arange(0, IN)
    row, row_mask = rows_of_tile(order_ptr, tl.load(tile + 1), count, length, ROWS)
    column_mask = column < in_features
    sums = input_grad_sums(
        dy_ptr, weight_ptr, bank_ptr + tl.maximum(task, 0) * task_words, row, row_mask, in_tile,
        column_mask, in_features, out_features, row_words, dy_row_stride, dy_column_stride,
        BITS, LOADED, PRECISION, OUT, IN, ROWS,
    )  # fmt: skip
    dx_at = row[None, :] * in_features + column[:, None]
    mask = column_mask[:, None] & row_mask[None, :]
    if ACTIVATION != "":
        hidden = to_float32(tl.load(hidden_ptr + dx_at, mask=mask, other=0.0))
        sums = differentiate(sums, hidden, ACTIVATION)
    if HAS_RESIDUAL:
        residual_at = row[None, :] * residual_row_stride + column.to(tl.int64)[:, None] * residual_column_stride
        sums += to_float32(tl.load(residual_ptr + residual_at, mask=mask, other=0.0))
    sums = tl.where(task >= 0, sums, float("nan"))
    tl.store(dx_ptr + dx_at, from_float32(sums, dx_ptr.dtype.element_ty), mask=mask)
