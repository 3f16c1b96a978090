"""Triton kernels of the gated adapter; `triton.py` beside this file launches them.

A program computes both products for some rows: their hidden units stay on the chip, and the input of the first product
is read again for the residual soon after, from the L2 cache. As in gated_linear, both products are computed transposed,
so that the masked weight is operand A of the tensor-core product, which Hopper reads from registers.
Offsets are 64-bit: strides may span more than 2^31 elements.
"""

# Triton derives the types of a kernel's arguments from the call, which type checkers cannot follow.
# ruff: noqa: ANN001, ANN201
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from tss_kernels.backends.triton import dot_operand, from_float32, to_float32
from tss_kernels.gated_linear.triton_kernels import gate_numbers, select_columns, select_rows


@triton.jit
def tanh(value):
    """Compute tanh to float32 accuracy; near 0 by an odd polynomial (S. L. Moshier's Cephes, tanhf)."""
    size = tl.abs(value)
    square = value * value
    near = ((-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2) * square + 1.33314422036e-1
    near = (near * square - 3.33332819422e-1) * square * value + value
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, near, tl.where(value < 0, -far, far))


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """Compute a(value) in float32."""
    if ACTIVATION == "relu":
        return tl.where(value <= 0, 0.0, value)
    elif ACTIVATION == "gelu":
        return 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    elif ACTIVATION == "silu":
        return value / (1.0 + tl.exp(-value))
    else:
        return tanh(value)


@triton.jit
def differentiate(grad, hidden, ACTIVATION: tl.constexpr):
    """Compute grad * a' in float32; for relu and tanh, hidden is the activation's result, else its argument."""
    if ACTIVATION == "relu":
        return tl.where(hidden <= 0, 0.0, grad)
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * hidden * hidden)
        return grad * (0.5 * (1.0 + tl.erf(hidden * 0.7071067811865476)) + hidden * density)
    elif ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-hidden))
        return grad * (sigmoid * (1.0 + hidden * (1.0 - sigmoid)))
    else:
        return grad * (1.0 - hidden * hidden)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """Convert a value, which may be wider under autocast, to an operand of a product with weights of this dtype."""
    if value.dtype == dtype:
        return dot_operand(value)
    else:
        return dot_operand(from_float32(to_float32(value), dtype))


@triton.jit
def program_again(pointer, size):
    """Return the program id through a load that is always masked off; `size` is not negative.

    The compiler cannot know that this is the same id as before. So the addresses of the second product are computed
    after the activation, instead of being held in registers that the activation needs.
    """
    program = tl.program_id(0)
    return tl.load(pointer.to(tl.pointer_type(tl.int32)), mask=program < -size, other=program)


@triton.jit
def adapter_forward_kernel(
    x_ptr,
    down_ptr,
    down_gates_ptr,
    down_bias_ptr,
    up_ptr,
    up_gates_ptr,
    up_bias_ptr,
    y_ptr,
    hidden_ptr,
    rows,
    features,
    bottleneck,
    down_words,
    up_words,
    x_row_stride,
    x_column_stride,
    HAS_DOWN_BIAS: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr,
    DOWN_BITS: tl.constexpr,
    UP_BITS: tl.constexpr,
    FIRST_LOADED: tl.constexpr,
    SECOND_LOADED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    KEEPS_RESULT: tl.constexpr,
    PRECISION: tl.constexpr,
    HIDDEN: tl.constexpr,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute ROWS rows of y, and what the backward pass needs of their hidden units; HIDDEN covers all units."""
    dtype = down_ptr.dtype.element_ty
    unit, column = tl.arange(0, HIDDEN), tl.arange(0, FEATURES)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unit_mask, row_mask = unit < bottleneck, (row < rows)[None, :]
    word, up_word = tl.arange(0, FEATURES // DOWN_BITS), tl.arange(0, HIDDEN // UP_BITS)
    down_at = unit.to(tl.int64)[:, None] * features + column[None, :]
    words_at = unit.to(tl.int64)[:, None] * down_words + word[None, :]
    x_at = row.to(tl.int64)[None, :] * x_row_stride + column.to(tl.int64)[:, None] * x_column_stride
    zero = tl.full([], 0, tl.int64)  # widens `start`, which is a plain integer in the interpreter
    tl.assume(features > 0)
    down_numbers = gate_numbers(down_gates_ptr, features, DOWN_BITS, FIRST_LOADED)
    up_numbers = gate_numbers(up_gates_ptr, features, UP_BITS, SECOND_LOADED)
    sums = tl.zeros([HIDDEN, ROWS], tl.float32)
    for start in range(0, features, FEATURES):
        inside = column < features - start
        down = tl.load(down_ptr + down_at + start, mask=unit_mask[:, None] & inside[None, :], other=0.0)
        words_mask = unit_mask[:, None] & (word < down_words - start // DOWN_BITS)[None, :]
        words = tl.load(down_gates_ptr + words_at + start // DOWN_BITS, mask=words_mask, other=0).to(tl.int32)
        x = tl.load(x_ptr + x_at + (zero + start) * x_column_stride, mask=inside[:, None] & row_mask, other=0.0)
        masked = select_columns(words, down, down_numbers)
        sums = tl.dot(dot_operand(masked), narrow(x, dtype), sums, input_precision=PRECISION)
    if HAS_DOWN_BIAS:
        sums += to_float32(tl.load(down_bias_ptr + unit, mask=unit_mask, other=0.0))[:, None]
    sums = tl.where(unit_mask[:, None], sums, 0.0)  # padding units are NaN if x is not finite
    if KEEPS_RESULT:
        hidden = from_float32(activate(sums, ACTIVATION), dtype)
        active = hidden
    else:
        hidden = from_float32(sums, dtype)
        active = from_float32(activate(to_float32(hidden), ACTIVATION), dtype)
    hidden_at = row.to(tl.int64)[None, :] * bottleneck + unit[:, None]
    tl.store(hidden_ptr + hidden_at, hidden, mask=unit_mask[:, None] & row_mask)
    up_at = column.to(tl.int64)[:, None] * bottleneck + unit[None, :]
    up_words_at = column.to(tl.int64)[:, None] * up_words + up_word[None, :]
    y_at = row.to(tl.int64)[None, :] * features + column[:, None]
    for start in range(0, features, FEATURES):
        first, inside = zero + start, column < features - start
        up = tl.load(up_ptr + up_at + first * bottleneck, mask=inside[:, None] & unit_mask[None, :], other=0.0)
        up_words_mask = inside[:, None] & (up_word < up_words)[None, :]
        words = tl.load(up_gates_ptr + up_words_at + first * up_words, mask=up_words_mask, other=0).to(tl.int32)
        masked = select_columns(words, up, up_numbers)
        y = tl.dot(dot_operand(masked), dot_operand(active), input_precision=PRECISION)
        if HAS_UP_BIAS:
            y += to_float32(tl.load(up_bias_ptr + start + column, mask=inside, other=0.0))[:, None]
        mask = inside[:, None] & row_mask
        y += to_float32(tl.load(x_ptr + x_at + first * x_column_stride, mask=mask, other=0.0))
        tl.store(y_ptr + y_at + start, from_float32(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def adapter_input_grad_kernel(
    dy_ptr,
    hidden_ptr,
    down_ptr,
    down_gates_ptr,
    up_ptr,
    up_gates_ptr,
    dx_ptr,
    d_hidden_ptr,
    rows,
    features,
    bottleneck,
    down_words,
    up_words,
    dy_row_stride,
    dy_column_stride,
    FOR_X: tl.constexpr,
    DOWN_BITS: tl.constexpr,
    UP_BITS: tl.constexpr,
    FIRST_LOADED: tl.constexpr,
    SECOND_LOADED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    HIDDEN: tl.constexpr,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute ROWS rows of the gradient of the hidden units before the activation and, if FOR_X, of the input."""
    dtype = up_ptr.dtype.element_ty
    unit, column = tl.arange(0, HIDDEN), tl.arange(0, FEATURES)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unit_mask, row_mask = unit < bottleneck, (row < rows)[None, :]
    word, up_word = tl.arange(0, FEATURES // DOWN_BITS), tl.arange(0, HIDDEN // UP_BITS)
    up_at = column.to(tl.int64)[None, :] * bottleneck + unit[:, None]
    up_words_at = column.to(tl.int64)[None, :] * up_words + up_word[:, None]
    dy_at = row.to(tl.int64)[None, :] * dy_row_stride + column.to(tl.int64)[:, None] * dy_column_stride
    zero = tl.full([], 0, tl.int64)  # widens `start`, which is a plain integer in the interpreter
    tl.assume(features > 0)
    down_numbers = gate_numbers(down_gates_ptr, features, DOWN_BITS, SECOND_LOADED)
    up_numbers = gate_numbers(up_gates_ptr, features, UP_BITS, FIRST_LOADED)
    sums = tl.zeros([HIDDEN, ROWS], tl.float32)
    for start in range(0, features, FEATURES):
        first, inside = zero + start, column < features - start
        up = tl.load(up_ptr + up_at + first * bottleneck, mask=unit_mask[:, None] & inside[None, :], other=0.0)
        up_words_mask = (up_word < up_words)[:, None] & inside[None, :]
        words = tl.load(up_gates_ptr + up_words_at + first * up_words, mask=up_words_mask, other=0).to(tl.int32)
        dy = tl.load(dy_ptr + dy_at + first * dy_column_stride, mask=inside[:, None] & row_mask, other=0.0)
        masked = select_rows(words, up, up_numbers)
        sums = tl.dot(dot_operand(masked), narrow(dy, dtype), sums, input_precision=PRECISION)
    sums = tl.where(unit_mask[:, None], sums, 0.0)  # padding units are NaN if dy is not finite
    hidden_at = row.to(tl.int64)[None, :] * bottleneck + unit[:, None]
    hidden_mask = unit_mask[:, None] & row_mask
    hidden = to_float32(tl.load(hidden_ptr + hidden_at, mask=hidden_mask, other=0.0))
    d_hidden = from_float32(differentiate(sums, hidden, ACTIVATION), dtype)
    row = program_again(d_hidden_ptr, features) * ROWS + tl.arange(0, ROWS)
    row_mask = (row < rows)[None, :]
    hidden_at = row.to(tl.int64)[None, :] * bottleneck + unit[:, None]
    tl.store(d_hidden_ptr + hidden_at, d_hidden, mask=unit_mask[:, None] & row_mask)
    if FOR_X:
        dy_at = row.to(tl.int64)[None, :] * dy_row_stride + column.to(tl.int64)[:, None] * dy_column_stride
        down_at = unit.to(tl.int64)[None, :] * features + column[:, None]
        words_at = unit.to(tl.int64)[None, :] * down_words + word[:, None]
        dx_at = row.to(tl.int64)[None, :] * features + column[:, None]
        for start in range(0, features, FEATURES):
            inside = column < features - start
            down = tl.load(down_ptr + down_at + start, mask=inside[:, None] & unit_mask[None, :], other=0.0)
            words_mask = (word < down_words - start // DOWN_BITS)[:, None] & unit_mask[None, :]
            words = tl.load(down_gates_ptr + words_at + start // DOWN_BITS, mask=words_mask, other=0).to(tl.int32)
            masked = select_rows(words, down, down_numbers)
            dx = tl.dot(dot_operand(masked), dot_operand(d_hidden), input_precision=PRECISION)
            mask = inside[:, None] & row_mask
            dx += to_float32(tl.load(dy_ptr + dy_at + (zero + start) * dy_column_stride, mask=mask, other=0.0))
            tl.store(dx_ptr + dx_at + start, from_float32(dx, dx_ptr.dtype.element_ty), mask=mask)
