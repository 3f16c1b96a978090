"""The gated adapter in Triton: forward pass and input gradient in one kernel each.

The launch configuration is a function only of dtypes and shape, without tuning at run time; if one kernel does not
pay, two products run one after the other. Every sum has a fixed order that depends only on shapes and strides, so equal
inputs give equal bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from tss_kernels.backends import tile_choice
from tss_kernels.backends.triton import dot_precision, launch
from tss_kernels.gated_adapter import reference
from tss_kernels.gated_adapter.triton_kernels import adapter_forward_kernel, adapter_input_grad_kernel
from tss_kernels.gated_linear.triton import gate_words, packed_linear
from tss_kernels.gated_linear.triton import input_grad as linear_input_grad
from tss_kernels.gated_linear.triton_tiles import is_aligned, loads_numbers


class Tile(NamedTuple):
    """Launch configuration: hidden units per program, features at a time, rows, warps and pipeline depth."""

    hidden: int
    features: int
    rows: int
    warps: int
    stages: int


# Tiles in descending order of rows. None spills when compiled for sm_80, sm_86 or sm_90, whatever the activation.
NARROW = (Tile(64, 64, 128, 8, 3), Tile(64, 64, 64, 4, 3), Tile(64, 64, 32, 4, 3))
WIDE = (Tile(128, 64, 64, 8, 3), Tile(128, 64, 32, 8, 3))
FLOAT32 = (Tile(64, 32, 32, 8, 2),)
# If rows do not start on 16-byte boundaries, every element has its own address: larger tiles run out of registers.
UNALIGNED_NARROW = (Tile(64, 64, 32, 8, 2),)
UNALIGNED_WIDE = (Tile(128, 64, 32, 8, 2),)
# With these tiles two programs run on a Hopper multiprocessor if a thread uses no more registers than this; compiled
# with this limit, the kernels do not spill. With NARROW[0] the forward pass uses no more even without a limit. Under
# autocast, with a wider x, the kernels would spill.
TWO_PROGRAMS, REGISTERS = {"forward": (WIDE[0],), "input_grad": (NARROW[0], *WIDE)}, 128
# Most rows for which one kernel runs float32, which tensor cores do not multiply, or loads of single elements. The same
# predicted number as for one product: with few rows, saving launches wins.
SLOW_ROWS = 512


def tile_for(
    x_dtype: torch.dtype, dtype: torch.dtype, rows: int, features: int, bottleneck: int, aligned: bool
) -> tuple[Tile | None, str]:
    """Return the tile of both kernels and the reason; None if two products run one after the other.

    x_dtype: of x, at least as wide as the weights' dtype; aligned: rows of x start on 16-byte boundaries.
    """
    narrow, wide = FLOAT32[0].hidden if dtype == torch.float32 else NARROW[0].hidden, WIDE[0].hidden
    most = narrow if dtype == torch.float32 else wide
    if bottleneck > most:
        return None, f"{bottleneck} hidden units are more than the {most} that one program holds in {dtype}"
    if rows > SLOW_ROWS and (dtype == torch.float32 or not aligned):
        what = "loads of single elements" if not aligned else "float32 without tensor cores"
        return None, f"predicted: {what} in one kernel pay off up to {SLOW_ROWS} rows"
    if dtype == torch.float32:
        tiles = FLOAT32
    elif aligned:
        tiles = NARROW if bottleneck <= narrow else WIDE
    else:
        tiles = UNALIGNED_NARROW if bottleneck <= narrow else UNALIGNED_WIDE
    best = tile_choice.adapter("triton", rows, features, tuple(tile.rows for tile in tiles)).rows
    tile = next(tile for tile in tiles if tile.rows == best)
    # A stage of x takes twice the shared memory if x is wider than the operands of the product.
    tile = tile._replace(stages=2) if x_dtype != dtype else tile
    return tile, "x is read once from memory and y written once"


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the adapter of shape (rows, d, bottleneck) runs without autocast, and why."""
    del op, device
    rows, features, bottleneck = shape
    tile, why = tile_for(dtype, dtype, rows, features, bottleneck, features % 16 == 0)
    return f"{tile or 'two packed_linear around the activation'}; {why}"


def _tile(rows_of_x: torch.Tensor, weight: torch.Tensor) -> Tile | None:
    """Return the tile for x or dy (rows, d) and the down weight (bottleneck, d)."""
    (rows, features), bottleneck = rows_of_x.shape, weight.shape[0]
    if features == 0:
        return None  # the kernels assume that their loops run at least once
    aligned = is_aligned((features, features), rows_of_x)
    return tile_for(rows_of_x.dtype, weight.dtype, rows, features, bottleneck, aligned)[0]


def _constants(tile: Tile, which: str) -> dict[str, object]:
    """Return the compile-time constants of both kernels for a tile."""
    return {
        "FIRST_LOADED": loads_numbers(tile.hidden, tile.warps),
        "SECOND_LOADED": loads_numbers(tile.features, tile.warps),
        "PRECISION": dot_precision(),
        "HIDDEN": tile.hidden,
        "FEATURES": tile.features,
        "ROWS": tile.rows,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": REGISTERS if tile in TWO_PROGRAMS[which] else None,
    }


def forward(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    down_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and hidden as `reference.forward` does; x (rows, d) with any strides."""
    (rows, features), bottleneck = x.shape, down_weight.shape[0]
    tile = _tile(x, down_weight)
    if tile is None:
        return reference.forward(
            x, down_weight, down_packed, up_weight, up_packed, down_bias, up_bias, activation, packed_linear
        )
    y = torch.empty((rows, features), dtype=x.dtype, device=x.device)
    hidden = torch.empty((rows, bottleneck), dtype=down_weight.dtype, device=x.device)
    if rows == 0:
        return y, hidden
    down_weight, up_weight = down_weight.contiguous(), up_weight.contiguous()
    (down_gates, down_bits), (up_gates, up_bits) = gate_words(down_packed), gate_words(up_packed)
    launch(
        adapter_forward_kernel, triton.cdiv(rows, tile.rows),
        x, down_weight, down_gates, down_weight if down_bias is None else down_bias.contiguous(),
        up_weight, up_gates, up_weight if up_bias is None else up_bias.contiguous(), y, hidden,
        rows, features, bottleneck, down_gates.shape[1], up_gates.shape[1], x.stride(0), x.stride(1),
        HAS_DOWN_BIAS=down_bias is not None, HAS_UP_BIAS=up_bias is not None, DOWN_BITS=down_bits, UP_BITS=up_bits,
        ACTIVATION=activation, KEEPS_RESULT=activation in reference.FROM_RESULT, **_constants(tile, "forward"),
    )  # fmt: skip
    return y, hidden


def input_grad(
    dy: torch.Tensor,
    hidden: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    activation: str,
    for_x: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dx and d_hidden as `reference.input_grad` does; dy (rows, d) with any strides."""
    (rows, features), bottleneck = dy.shape, down_weight.shape[0]
    tile = _tile(dy, down_weight)
    if features == 1 and dy.dtype == torch.float32:
        tile = None  # compiled for one feature, the kernel runs out of registers
    if tile is None:
        return reference.input_grad(
            dy, hidden, down_weight, down_packed, up_weight, up_packed, activation, for_x, linear_input_grad
        )
    dx = torch.empty((rows if for_x else 0, features), dtype=dy.dtype, device=dy.device)
    d_hidden = torch.empty((rows, bottleneck), dtype=hidden.dtype, device=dy.device)
    if rows == 0:
        return dx, d_hidden
    (down_gates, down_bits), (up_gates, up_bits) = gate_words(down_packed), gate_words(up_packed)
    launch(
        adapter_input_grad_kernel, triton.cdiv(rows, tile.rows),
        dy, hidden.contiguous(), down_weight.contiguous(), down_gates, up_weight.contiguous(), up_gates, dx, d_hidden,
        rows, features, bottleneck, down_gates.shape[1], up_gates.shape[1], dy.stride(0), dy.stride(1),
        FOR_X=for_x, DOWN_BITS=down_bits, UP_BITS=up_bits,
        ACTIVATION=activation, **_constants(tile, "input_grad"),
    )  # fmt: skip
    return dx, d_hidden
