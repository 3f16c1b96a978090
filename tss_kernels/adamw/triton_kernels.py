"""The Triton kernel of soft-masked AdamW; `triton.py` beside this file launches it.

A small table on the device holds each tensor's addresses, size and first block. A program counts the tensors that
start at or before its own block to find its tensor, then reads that tensor's addresses.
"""

# Triton derives the types of a kernel's arguments from the call, which type checkers cannot follow.
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from tss_kernels.backends.triton import from_float32, to_float32
from tss_kernels.gates.triton_kernels import bits_to_bytes


@triton.jit
def _address(table_ptr, tensors, tensor, line: tl.constexpr, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer in one line of the table, which is promised to be aligned where all are."""
    address = tl.load(table_ptr + line * tensors + tensor).to(tl.pointer_type(dtype))
    return tl.multiple_of(address, 16) if ALIGNED else address


@triton.jit
def _emit_gates(table_ptr, tensors, tensor, before, after, mask, start, size, BLOCK: tl.constexpr):
    """Writes the block's new gates as bits, if they are asked for, and adds the number of changed ones to their count.

    Integers have one sum in any order, so an atomic addition leaves the result the same in every run.
    """
    packed = tl.load(table_ptr + 7 * tensors + tensor)
    if packed != 0:
        threshold = tl.load(table_ptr + 9 * tensors + tensor).to(tl.int32).to(tl.float32, bitcast=True)
        on = (mask & (after >= threshold)).to(tl.int32)
        byte = tl.arange(0, BLOCK // 8)
        packed_ptr = packed.to(tl.pointer_type(tl.uint8)) + start // 8
        tl.store(packed_ptr + byte, bits_to_bytes(on, BLOCK // 8), mask=byte < (size - start) // 8)
        flips = tl.load(table_ptr + 10 * tensors + tensor)
        if flips != 0:
            changed = tl.sum(on ^ (mask & (before >= threshold)).to(tl.int32), axis=0)
            tl.atomic_add(flips.to(tl.pointer_type(tl.int64)), changed.to(tl.int64), mask=changed != 0, sem="relaxed")


@triton.jit
def _update(
    param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, importance_ptr, at, mask, importance_mask,
    decay, take1, beta2, take2, step_size, root_correction, eps, UPDATE_SITE: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """AdamW on one block; 1 - importance scales the gradient or, at the update site, the whole step with its decay.

    Returns the parameters before and after, in float32.
    """
    keep = 1.0 - to_float32(tl.load(importance_ptr + at, mask=importance_mask, other=0.0))
    before = to_float32(tl.load(param_ptr + at, mask=mask, other=0.0))
    grad = to_float32(tl.load(grad_ptr + at, mask=mask, other=0.0))
    exp_avg = to_float32(tl.load(exp_avg_ptr + at, mask=mask, other=0.0))
    exp_avg_sq = to_float32(tl.load(exp_avg_sq_ptr + at, mask=mask, other=0.0))
    if not UPDATE_SITE:
        grad *= keep
    exp_avg += take1 * (grad - exp_avg)
    exp_avg_sq = beta2 * exp_avg_sq + take2 * grad * grad
    step = step_size * exp_avg / (tl.sqrt_rn(exp_avg_sq) / root_correction + eps)
    if DECAY:
        step += decay * before
    after = before - (step * keep if UPDATE_SITE else step)
    tl.store(param_ptr + at, from_float32(after, param_ptr.dtype.element_ty), mask=mask)
    tl.store(exp_avg_ptr + at, from_float32(exp_avg, exp_avg_ptr.dtype.element_ty), mask=mask)
    tl.store(exp_avg_sq_ptr + at, from_float32(exp_avg_sq, exp_avg_sq_ptr.dtype.element_ty), mask=mask)
    return before, after


@triton.jit
def adamw_kernel(
    table_ptr, tensors, decay, take1, beta2, take2, step_size, root_correction, eps,
    UPDATE_SITE: tl.constexpr, DECAY: tl.constexpr, GATES: tl.constexpr, RAGGED: tl.constexpr, PARAM: tl.constexpr,
    GRAD: tl.constexpr, EXP_AVG: tl.constexpr, EXP_AVG_SQ: tl.constexpr, IMPORTANCE: tl.constexpr,
    ALIGNED: tl.constexpr, TENSORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one tensor.

    The table's lines are five addresses, the size and the first block, and with GATES also the address of the packed
    gates, the columns of a matrix whose rows end within a byte (else 0), the threshold's bits and the address of the
    count of flips. With RAGGED there is such a matrix: it counts as if its rows were filled up to whole bytes.
    """
    block = tl.program_id(0)
    index = tl.arange(0, TENSORS)
    first_blocks = tl.load(table_ptr + 6 * tensors + index, mask=index < tensors, other=0x7FFFFFFF)
    tensor = tl.sum((first_blocks <= block).to(tl.int32), axis=0) - 1
    param_ptr = _address(table_ptr, tensors, tensor, 0, PARAM, ALIGNED)
    grad_ptr = _address(table_ptr, tensors, tensor, 1, GRAD, ALIGNED)
    exp_avg_ptr = _address(table_ptr, tensors, tensor, 2, EXP_AVG, ALIGNED)
    exp_avg_sq_ptr = _address(table_ptr, tensors, tensor, 3, EXP_AVG_SQ, ALIGNED)
    importance_ptr = _address(table_ptr, tensors, tensor, 4, IMPORTANCE, ALIGNED)
    size = tl.load(table_ptr + 5 * tensors + tensor)
    start = (block - tl.load(table_ptr + 6 * tensors + tensor)) * BLOCK
    at = start + tl.arange(0, BLOCK)
    # A tensor without importance has the address 0, where nothing may be read.
    importance_size = tl.where(tl.load(table_ptr + 4 * tensors + tensor) != 0, size, 0)
    whole = start + BLOCK <= size
    if RAGGED:
        columns = tl.load(table_ptr + 8 * tensors + tensor)
        whole = whole & (columns == 0)
    if whole:  # a mask that is one value for the whole block leaves the accesses 16 bytes wide
        mask = tl.full([BLOCK], True, tl.int1)
        importance_mask = tl.zeros_like(at) < importance_size
        before, after = _update(
            param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, importance_ptr, at, mask, importance_mask,
            decay, take1, beta2, take2, step_size, root_correction, eps, UPDATE_SITE, DECAY,
        )  # fmt: skip
        if GATES:
            _emit_gates(table_ptr, tensors, tensor, before, after, mask, start, size, BLOCK)
    else:
        mask = at < size
        if RAGGED:
            filled = tl.where(columns == 0, 1, (columns + 7) // 8 * 8)
            row = at // filled
            column = at - row * filled
            at = tl.where(columns == 0, at, row * columns + column)
            mask = mask & (column <= tl.where(columns == 0, 0, columns - 1))
        before, after = _update(
            param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, importance_ptr, at, mask, mask & (at < importance_size),
            decay, take1, beta2, take2, step_size, root_correction, eps, UPDATE_SITE, DECAY,
        )  # fmt: skip
        if GATES:
            _emit_gates(table_ptr, tensors, tensor, before, after, mask, start, size, BLOCK)
