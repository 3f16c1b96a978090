"""The gated linear map in Triton: product, input gradient and score gradient, each with its mask inside the kernel.

The launch configuration is a function of dtype and shape alone, without tuning at run time. Every sum has a fixed
order that depends on shapes and strides alone, so equal inputs give equal bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from tss_kernels._triton import dot_precision, launch
from tss_kernels.gated_linear.triton_kernels import forward_kernel, input_grad_kernel, partial_kernel, reduce_kernel


class Tile(NamedTuple):
    """Launch configuration: how much of each dimension a program takes at a time, its warps and its pipeline depth."""

    out: int
    inner: int
    rows: int
    warps: int
    stages: int


# Enough programs to give every multiprocessor of a large GPU one; a constant, so that sums do not depend on the device.
PROGRAMS = 132
MAX_SPLITS = 64
MIN_SPLIT_ROWS = 256
REDUCE_BLOCK = 256

# Per kernel: tiles in falling order of rows. Shared memory and registers of each are checked by compiling for sm_90.
FORWARD_NARROW = (Tile(64, 64, 128, 4, 3), Tile(64, 64, 64, 4, 3), Tile(64, 64, 32, 4, 3))
FORWARD_WIDE = (Tile(128, 64, 128, 8, 3), Tile(128, 64, 64, 8, 3), Tile(128, 64, 32, 8, 3))
INPUT_NARROW = (Tile(64, 64, 128, 4, 3), Tile(64, 64, 64, 4, 3), Tile(64, 64, 32, 4, 3))
INPUT_WIDE = (Tile(64, 128, 128, 8, 3), Tile(64, 128, 64, 8, 3), Tile(64, 128, 32, 8, 3))
FLOAT32 = (Tile(64, 64, 32, 4, 2),)
# Where rows do not start on 16-byte boundaries every element has its own address: larger tiles run out of registers.
UNEVEN = (Tile(64, 64, 32, 8, 2),)
UNEVEN_FLOAT32 = (Tile(64, 64, 16, 8, 2),)


def _pipelined(tile: Tile, steps: int) -> Tile:
    """The tile, pipelined no deeper than its loop is long: idle stages would only take shared memory."""
    return tile._replace(stages=max(1, min(tile.stages, steps)))


def _fit(tiles: tuple[Tile, ...], columns: int, rows: int) -> Tile:
    """The tile with most rows that makes `PROGRAMS` programs, `columns` of them side by side; else the last."""
    return next((tile for tile in tiles if columns * triton.cdiv(rows, tile.rows) >= PROGRAMS), tiles[-1])


def _is_even(features: tuple[int, int], *tensors: torch.Tensor) -> bool:
    """Whether Triton can prove that 16 bytes may be loaded at once: aligned starts, one stride of 1, the rest and the
    numbers of features multiples of 16."""
    return all(size % 16 == 0 for size in features) and all(
        tensor.data_ptr() % 16 == 0
        and 1 in tensor.stride()
        and all(stride == 1 or stride % 16 == 0 for stride in tensor.stride())
        for tensor in tensors
    )


def _tiles(
    dtype: torch.dtype, even: bool, narrow: tuple[Tile, ...], wide: tuple[Tile, ...], features: int
) -> tuple[Tile, ...]:
    """The tiles to choose from."""
    if dtype == torch.float32:
        return FLOAT32 if even else UNEVEN_FLOAT32
    if not even:
        return UNEVEN
    return narrow if features <= 64 else wide


def forward_tile(dtype: torch.dtype, rows: int, in_features: int, out_features: int, even: bool) -> Tile:
    """Configuration of the forward product; `even` as by `_is_even`."""
    tiles = _tiles(dtype, even, FORWARD_NARROW, FORWARD_WIDE, out_features)
    tile = _fit(tiles, triton.cdiv(out_features, tiles[0].out), rows)
    return _pipelined(tile, triton.cdiv(in_features, tile.inner))


def input_grad_tile(dtype: torch.dtype, rows: int, in_features: int, out_features: int, even: bool) -> Tile:
    """Configuration of the input gradient; `even` as by `_is_even`."""
    tiles = _tiles(dtype, even, INPUT_NARROW, INPUT_WIDE, in_features)
    tile = _fit(tiles, triton.cdiv(in_features, tiles[0].inner), rows)
    return _pipelined(tile, triton.cdiv(out_features, tile.out))


def scores_grad_tile(
    dtype: torch.dtype, rows: int, in_features: int, out_features: int, even: bool
) -> tuple[Tile, int]:
    """Configuration of the score gradient and the number of row ranges (a power of two) whose sums are added after."""
    out, inner = (64 if features <= 64 else 128 for features in (out_features, in_features))
    wide = (Tile(out, inner, 64, 8 if out * inner > 8192 else 4, 3),)
    tile = _tiles(dtype, even, wide, wide, in_features)[0]
    tiles = triton.cdiv(out_features, tile.out) * triton.cdiv(in_features, tile.inner)
    splits = 1
    while splits < MAX_SPLITS and tiles * splits < PROGRAMS and rows >= 2 * splits * MIN_SPLIT_ROWS:
        splits *= 2
    return _pipelined(tile, triton.cdiv(triton.cdiv(rows, splits), tile.rows)), splits


def forward(
    x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = x @ where(scores >= threshold, weight, 0).T + bias, and the gates used, for the backward pass.

    x (rows, in) with any strides; weight (out, in) of x's dtype; scores (out, in) float32; bias (out,) or None.
    Returns y (rows, out) of x's dtype and uint8 (out, ceil(in / 8)): bit i of byte j is column 8 j + i, padding is 0.
    """
    rows, in_features = x.shape
    out_features = weight.shape[0]
    weight, scores = weight.contiguous(), scores.contiguous()
    y = torch.empty((rows, out_features), dtype=x.dtype, device=x.device)
    packed = torch.empty((out_features, (in_features + 7) // 8), dtype=torch.uint8, device=x.device)
    if out_features == 0:
        return y, packed
    tile = forward_tile(x.dtype, rows, in_features, out_features, _is_even((in_features, out_features), x))
    # Without rows one row tile still runs, to write the gates.
    programs = triton.cdiv(out_features, tile.out) * max(1, triton.cdiv(rows, tile.rows))
    launch(
        forward_kernel, programs,
        x, weight, scores, weight if bias is None else bias.contiguous(), y, packed, float(threshold),
        rows, in_features, out_features, x.stride(0), x.stride(1),
        HAS_BIAS=bias is not None, PRECISION=dot_precision(), OUT=tile.out, IN=tile.inner, ROWS=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y, packed


def _gate_words(packed: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The gates as 32-bit words where whole words fill a row, else as bytes, and the number of gates in each."""
    packed = packed.contiguous()
    if packed.shape[1] % 4 == 0 and packed.storage_offset() % 4 == 0:
        return packed.view(torch.int32), 32
    return packed, 8


def input_grad(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """dx = dy @ (weight * gate), the gates from their bits, so an off entry adds exactly 0 whatever its weight.

    dy (rows, out) with any strides; weight (out, in) of dy's dtype; packed uint8 (out, ceil(in / 8)) as `forward`
    writes it. Returns dx (rows, in) of dy's dtype.
    """
    rows, out_features = dy.shape
    in_features = weight.shape[1]
    dx = torch.empty((rows, in_features), dtype=dy.dtype, device=dy.device)
    if dx.numel() == 0:
        return dx
    weight = weight.contiguous()
    gates, bits = _gate_words(packed)
    tile = input_grad_tile(dy.dtype, rows, in_features, out_features, _is_even((in_features, out_features), dy))
    launch(
        input_grad_kernel, triton.cdiv(in_features, tile.inner) * triton.cdiv(rows, tile.rows),
        dy, weight, gates, dx,
        rows, in_features, out_features, gates.shape[1], dy.stride(0), dy.stride(1),
        BITS=bits, PRECISION=dot_precision(), OUT=tile.out, IN=tile.inner, ROWS=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dx


def scores_grad(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """The straight-through gradient of the scores, (dyᵀ x) * weight * (1 - importance), for on and off entries alike.

    dy (rows, out) and x (rows, in) with any strides; weight (out, in); importance (out, in) in [0, 1] or None.
    Returns float32 (out, in). The rows are summed in ranges and the ranges in order: no atomics, equal bits every time.
    """
    rows, out_features = dy.shape
    in_features = x.shape[1]
    grad = torch.empty((out_features, in_features), dtype=torch.float32, device=x.device)
    if grad.numel() == 0:
        return grad
    tile, splits = scores_grad_tile(
        x.dtype, rows, in_features, out_features, _is_even((in_features, out_features), dy, x)
    )
    partial = torch.empty((splits, out_features, in_features), dtype=torch.float32, device=x.device)
    split_rows = triton.cdiv(triton.cdiv(rows, splits), tile.rows) * tile.rows
    tiles = triton.cdiv(out_features, tile.out) * triton.cdiv(in_features, tile.inner)
    weight = weight.contiguous()
    launch(
        partial_kernel, tiles * splits,
        dy, x, partial,
        rows, split_rows, in_features, out_features, dy.stride(0), dy.stride(1), x.stride(0), x.stride(1),
        PRECISION=dot_precision(), OUT=tile.out, IN=tile.inner, ROWS=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    launch(
        reduce_kernel, triton.cdiv(grad.numel(), REDUCE_BLOCK),
        partial, weight, weight if importance is None else importance.contiguous(), grad, grad.numel(),
        HAS_IMPORTANCE=importance is not None, SPLITS=splits, BLOCK=REDUCE_BLOCK, num_warps=4,
    )  # fmt: skip
    return grad
