"""Triton kernels that pack gates to bits and unpack them; `triton.py` beside this file launches them.

`pack_gates` is also called by kernels of other operations that read scores.
"""

# Triton derives the types of a kernel's arguments from the call, which type checkers cannot follow.
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from tss_kernels.backends.triton import from_float32, to_float32


@triton.jit
def bits_to_bytes(on, BYTES: tl.constexpr):
    """Pack each eight neighbouring gates (integers 0 or 1, in a flat block) into one byte, the first lowest."""
    bits = tl.reshape(on, [BYTES, 8]) << tl.arange(0, 8)[None, :]
    return tl.sum(bits, axis=1).to(tl.uint8)


@triton.jit
def pack_gates(
    scores_ptr, packed_ptr, threshold, in_features, out, out_mask, first, step, OUT: tl.constexpr, IN: tl.constexpr
):
    """Write the gates of rows `out` as bits, for blocks of IN columns starting at `first`, `step` columns apart."""
    row_bytes = (in_features + 7) // 8
    # PyTorch compares in the dtype of the scores. In the interpreter, the sum turns a plain number into a tensor.
    bound = to_float32(from_float32(tl.zeros([], tl.float32) + threshold, scores_ptr.dtype.element_ty))
    for start in tl.range(first, in_features, step, num_stages=1):
        column = start + tl.arange(0, IN)
        at = out.to(tl.int64)[:, None] * in_features + column[None, :]
        mask = out_mask[:, None] & (column < in_features)[None, :]
        # NaN compares false with every threshold, so padding stays 0.
        on = to_float32(tl.load(scores_ptr + at, mask=mask, other=float("nan"))) >= bound
        bits = tl.reshape(on.to(tl.int32), [OUT, IN // 8, 8]) << tl.arange(0, 8)[None, None, :]
        byte = start // 8 + tl.arange(0, IN // 8)
        packed_at = out.to(tl.int64)[:, None] * row_bytes + byte[None, :]
        packed_mask = out_mask[:, None] & (byte < row_bytes)[None, :]
        tl.store(packed_ptr + packed_at, tl.sum(bits, axis=2).to(tl.uint8), mask=packed_mask)


@triton.jit
def _pack_tile(scores_ptr, packed_ptr, threshold, out_features, in_features, tile, OUT: tl.constexpr, IN: tl.constexpr):
    """Pack one OUT x IN tile of one matrix."""
    in_tiles = tl.cdiv(in_features, IN)
    out = tile // in_tiles * OUT + tl.arange(0, OUT)
    first = tile % in_tiles * IN
    pack_gates(scores_ptr, packed_ptr, threshold, in_features, out, out < out_features, first, in_features, OUT, IN)


@triton.jit
def pack_kernel(
    scores_ptr, packed_ptr, other_scores_ptr, other_packed_ptr, threshold,
    out_features, in_features, other_out_features, other_in_features, tiles, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """Pack two matrices, one tile per program: the first `tiles` programs pack the first matrix."""
    tile = tl.program_id(0)
    if tile < tiles:
        _pack_tile(scores_ptr, packed_ptr, threshold, out_features, in_features, tile, OUT, IN)
    else:
        _pack_tile(
            other_scores_ptr, other_packed_ptr, threshold, other_out_features, other_in_features, tile - tiles, OUT, IN
        )


@triton.jit
def unpack_kernel(packed_ptr, gate_ptr, out_features, in_features, OUT: tl.constexpr, IN: tl.constexpr):
    """Unpack one OUT x IN tile of gates to bytes 0 and 1; each packed byte is read once."""
    in_tiles = tl.cdiv(in_features, IN)
    row_bytes = (in_features + 7) // 8
    out = tl.program_id(0) // in_tiles * OUT + tl.arange(0, OUT)
    first = tl.program_id(0) % in_tiles * IN
    byte, column = first // 8 + tl.arange(0, IN // 8), first + tl.arange(0, IN)
    out_mask, row = (out < out_features)[:, None], out.to(tl.int64)[:, None]
    packed = tl.load(packed_ptr + row * row_bytes + byte[None, :], mask=out_mask & (byte < row_bytes)[None, :], other=0)
    gate = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    gate_at = row * in_features + column[None, :]
    gate_mask = out_mask & (column < in_features)[None, :]
    tl.store(gate_ptr + gate_at, tl.reshape(gate, [OUT, IN]).to(tl.uint8), mask=gate_mask)
