"""Kernels that each break one limit of the resource gate, and one that breaks none; the launches are compiled by
`python -m tests.kernels.inspectors.resources --launches`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tests.kernels.inspectors.resources import Case, Kernel
from tests.kernels.inspectors.triton_cases import empty


@triton.jit
def good_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    features,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr = True,
):
    """y = x max(W, 0)ᵀ, the masked weight on the left; RUNS: the compiler is told that its loop runs."""
    inner, out, row = tl.arange(0, IN), tl.arange(0, OUT), tl.arange(0, ROWS)
    sums = tl.zeros([OUT, ROWS], tl.float32)
    if RUNS:
        tl.assume(features > 0)
    for start in range(0, features, IN):
        weight = tl.load(weight_ptr + out[:, None] * features + start + inner[None, :])
        x = tl.load(x_ptr + row[None, :] * features + start + inner[:, None])
        sums = tl.dot(tl.where(weight > 0, weight, tl.zeros_like(weight)), x, sums)
    tl.store(y_ptr + row[None, :] * OUT + out[:, None], sums.to(y_ptr.dtype.element_ty))


@triton.jit
def mask_on_the_right_kernel(
    x_ptr, weight_ptr, y_ptr, features, OUT: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr
):
    """The same with the masked weight on the right, which the tensor cores read from shared memory alone."""
    inner, out, row = tl.arange(0, IN), tl.arange(0, OUT), tl.arange(0, ROWS)
    sums = tl.zeros([ROWS, OUT], tl.float32)
    for start in range(0, features, IN):
        weight = tl.load(weight_ptr + out[None, :] * features + start + inner[:, None])
        x = tl.load(x_ptr + row[:, None] * features + start + inner[None, :])
        sums = tl.dot(x, tl.where(weight > 0, weight, tl.zeros_like(weight)), sums)
    tl.store(y_ptr + row[:, None] * OUT + out[None, :], sums.to(y_ptr.dtype.element_ty))


@triton.jit
def multiply_and_add_kernel(
    x_ptr, weight_ptr, y_ptr, features, OUT: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr
):
    """The same without `tl.dot`: no tensor core."""
    inner, out, row = tl.arange(0, IN), tl.arange(0, OUT), tl.arange(0, ROWS)
    sums = tl.zeros([OUT, ROWS], tl.float32)
    for start in range(0, features, IN):
        weight = tl.load(weight_ptr + out[:, None] * features + start + inner[None, :])
        x = tl.load(x_ptr + row[None, :] * features + start + inner[:, None])
        sums += tl.sum(weight[:, :, None].to(tl.float32) * x[None, :, :].to(tl.float32), 1)
    tl.store(y_ptr + row[None, :] * OUT + out[:, None], sums.to(y_ptr.dtype.element_ty))


@triton.jit
def spilling_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    """Keeps a matrix in the registers of one warp that are not enough for it."""
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at[:, None] * SIZE + at[None, :])
    total = tl.sum(x, 1)
    tl.store(y_ptr + at[:, None] * SIZE + at[None, :], x * total[:, None] + tl.max(x, 0)[None, :])


@triton.jit
def scattered_kernel(x_ptr, y_ptr, step, BLOCK: tl.constexpr):
    """Copies elements `step` apart: nothing can be loaded or stored 16 bytes at a time."""
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at * step, tl.load(x_ptr + at * step))


KERNELS = {
    "good_kernel": Kernel(product=True, masked=True, wide=True),
    "mask_on_the_right_kernel": Kernel(product=True, masked=True),
    "multiply_and_add_kernel": Kernel(product=True),
    "spilling_kernel": Kernel(),
    "scattered_kernel": Kernel(wide=True),
}


def products():
    """Launches of the products."""

    def call(kernel, out, rows, inner, stages, **constants) -> None:
        x, weight, y = (empty(256, 256, dtype=torch.bfloat16) for _ in range(3))
        kernel[(1,)](x, weight, y, 256, OUT=out, IN=inner, ROWS=rows, **constants, num_warps=4, num_stages=stages)

    for label, *arguments in (
        ("good", good_kernel, 64, 64, 64, 3),
        ("too many stages for shared memory", good_kernel, 128, 64, 128, 6),
        ("mask on the right", mask_on_the_right_kernel, 64, 64, 64, 3),
        ("no tensor core", multiply_and_add_kernel, 16, 16, 16, 1),
    ):
        yield Case(label, lambda arguments=arguments: call(*arguments), aligned=True, everywhere=True)
    yield Case("serialised", lambda: call(good_kernel, 64, 128, 64, 3, RUNS=False), aligned=True)


def others():
    """Launches of the rest, one of them of a kernel that KERNELS lacks."""
    x = empty(128, 128)
    yield Case("spills", lambda: spilling_kernel[(1,)](x, x, SIZE=128, num_warps=1))
    yield Case("scattered", lambda: scattered_kernel[(1,)](x, x, 3, BLOCK=128, num_warps=4), aligned=True)


OPERATIONS = {"products": products, "others": others}
