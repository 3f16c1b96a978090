"""Triton kernels of the importance; `triton.py` beside this file launches them.

The elements are groups of equal size, one after the other, and each group is cut into equal chunks. Everything is
computed in float64, which is exact for narrower inputs and no worse than PyTorch for float64 inputs: an importance is
computed only once per task. Means and squared deviations of blocks, then of chunks, are combined in a fixed order.
"""

# Triton derives the types of a kernel's arguments from the call, which type checkers cannot follow.
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from tss_kernels.backends.triton import from_float32, to_float32

EPS = tl.constexpr(1e-6)
# Below this |z| the series to z^5 is exact to a relative 1e-12; above it 1 - exp(-2 |z|) keeps 14 digits.
SERIES = tl.constexpr(0.015625)


@triton.jit
def _number(size):
    """Convert an integer argument to float64; the argument 1, and in the interpreter any argument, is not a tensor."""
    return tl.zeros([], tl.float64) + size


@triton.jit
def _to_float64(value):
    return value if value.dtype == tl.float64 else to_float32(value).to(tl.float64)


@triton.jit
def _from_float64(value, dtype: tl.constexpr):
    """Convert via float32, to which an importance is rounded first."""
    single = value.to(tl.float32)
    return single.to(tl.float64) if dtype == tl.float64 else from_float32(single, dtype)


@triton.jit
def _abs_tanh(z):
    """Compute |tanh z|, far beyond float32's precision also near 0."""
    size = tl.abs(z)
    square = size * size
    series = size * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)))
    fallen = tl.exp(-2.0 * size)
    return tl.where(size < SERIES, series, (1.0 - fallen) / (1.0 + fallen))


@triton.jit
def _stays(total, new):
    """Return whether max(total, new) is total; NaN in either counts as the larger."""
    return (total != total) | (total > new)


@triton.jit
def _shifted(raw_ptr, origin, at, stop):
    """Load elements minus their group's first one, so that equal elements are exactly 0; 0 from `stop` on."""
    value = _to_float64(tl.load(raw_ptr + at, mask=at < stop, other=0.0)) - origin
    return tl.where(at < stop, value, 0.0)


@triton.jit
def _statistics(raw_ptr, origin, start, stop, BLOCK: tl.constexpr):
    """Compute mean and sum of squared deviations of the elements from start to stop.

    Each block's are about its own mean, combined as by Chan, Golub and LeVeque (1979).
    """
    mean = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for first in range(start, stop, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = _shifted(raw_ptr, origin, at, stop)
        count = tl.minimum(stop - first, BLOCK).to(tl.float64)
        block_mean = tl.sum(value, axis=0) / count
        centred = tl.where(at < stop, value - block_mean, 0.0)
        before = (first - start).to(tl.float64)
        difference = block_mean - mean
        mean += difference * (count / (before + count))
        squares += tl.sum(centred * centred, axis=0) + difference * difference * (before * count / (before + count))
    return mean, squares


@triton.jit
def statistics_kernel(raw_ptr, partial_ptr, size, chunk, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """Write mean and sum of squared deviations of one chunk to its place in the lines of means and of squares."""
    group, number = tl.program_id(0) // CHUNKS, tl.program_id(0) % CHUNKS
    offset = group.to(tl.int64) * size
    start = offset + number.to(tl.int64) * chunk
    origin = _to_float64(tl.load(raw_ptr + offset))
    mean, squares = _statistics(raw_ptr, origin, start, tl.minimum(start + chunk, offset + size), BLOCK)
    tl.store(partial_ptr + tl.program_id(0), mean)
    tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), squares)


@triton.jit
def _joined(partial_ptr, group, size, chunk, CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """Compute mean and sum of squared deviations of a group from those of its chunks."""
    number = tl.arange(0, LANES)
    mask = number < CHUNKS
    at = group * CHUNKS + number
    count = tl.minimum(chunk, size - number.to(tl.int64) * chunk).to(tl.float64)
    means = tl.load(partial_ptr + at, mask=mask, other=0.0)
    squares = tl.load(partial_ptr + tl.num_programs(0) + at, mask=mask, other=0.0)
    mean = tl.sum(tl.where(mask, means * count, 0.0), axis=0) / _number(size)
    difference = means - mean
    squares += tl.where(mask, difference * difference * count, 0.0)
    return mean, tl.sum(squares, axis=0)


@triton.jit
def importance_kernel(
    raw_ptr, importance_ptr, partial_ptr, size, chunk,
    UPDATE: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one chunk's importance, or with UPDATE its maximum with the old; a group of one chunk needs no partials."""
    group, number = tl.program_id(0) // CHUNKS, tl.program_id(0) % CHUNKS
    offset = group.to(tl.int64) * size
    start = offset + number.to(tl.int64) * chunk
    stop = tl.minimum(start + chunk, offset + size)
    origin = _to_float64(tl.load(raw_ptr + offset))
    if CHUNKS == 1:
        mean, squares = _statistics(raw_ptr, origin, start, stop, BLOCK)
    else:
        mean, squares = _joined(partial_ptr, group, size, chunk, CHUNKS, LANES)
    scale = 1.0 / (tl.sqrt(squares / _number(size)) + EPS)
    for first in range(start, stop, BLOCK):
        at = first + tl.arange(0, BLOCK)
        importance = _abs_tanh((_shifted(raw_ptr, origin, at, stop) - mean) * scale)
        if UPDATE:
            before = _to_float64(tl.load(importance_ptr + at, mask=at < stop, other=0.0))
            importance = tl.where(_stays(before, importance), before, importance)
        tl.store(importance_ptr + at, _from_float64(importance, importance_ptr.dtype.element_ty), mask=at < stop)


@triton.jit
def accumulate_kernel(total_ptr, new_ptr, size, BLOCK: tl.constexpr):
    """Set total to max(total, new) in one block."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(total_ptr + at, mask=at < size, other=0.0)
    new = tl.load(new_ptr + at, mask=at < size, other=0.0)
    tl.store(total_ptr + at, tl.where(_stays(_to_float64(total), _to_float64(new)), total, new), mask=at < size)
