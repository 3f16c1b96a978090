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


@triton.jit
def _address(table_ptr, tensors, tensor, line: tl.constexpr, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the pointer in one line of the table; ALIGNED declares it aligned to 16 bytes."""
    address = tl.load(table_ptr + line * tensors + tensor).to(tl.pointer_type(dtype))
    return tl.multiple_of(address, 16) if ALIGNED else address


@triton.jit
def _update(
    param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, importance_ptr, at, mask, importance_mask,
    decay, take1, beta2, take2, step_size, root_correction, eps, UPDATE_SITE: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """Update one block; 1 - importance scales the gradient or, at the update site, the whole step with its decay."""
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


@triton.jit
def adamw_kernel(
    table_ptr, tensors, decay, take1, beta2, take2, step_size, root_correction, eps,
    UPDATE_SITE: tl.constexpr, DECAY: tl.constexpr, PARAM: tl.constexpr, GRAD: tl.constexpr, EXP_AVG: tl.constexpr,
    EXP_AVG_SQ: tl.constexpr, IMPORTANCE: tl.constexpr, ALIGNED: tl.constexpr, TENSORS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Update one block of one tensor. The table's lines are five addresses, the size and the first block."""
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
    # Without importance the address is 0, which must not be read.
    importance_size = tl.where(tl.load(table_ptr + 4 * tensors + tensor) != 0, size, 0)
    if start + BLOCK <= size:  # masks that are uniform over the block keep the accesses 16 bytes wide
        mask = tl.full([BLOCK], True, tl.int1)
        importance_mask = tl.zeros_like(at) < importance_size
        _update(
            param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, importance_ptr, at, mask, importance_mask,
            decay, take1, beta2, take2, step_size, root_correction, eps, UPDATE_SITE, DECAY,
        )  # fmt: skip
    else:
        _update(
            param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, importance_ptr, at, at < size, at < importance_size,
            decay, take1, beta2, take2, step_size, root_correction, eps, UPDATE_SITE, DECAY,
        )  # fmt: skip
