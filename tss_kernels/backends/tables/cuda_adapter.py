"""Tiles of the CUDA C++ adapter, and what runs as two products instead.

Nothing here was measured: tiles are chosen by counted instructions, the crossover is that of a single product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from tss_kernels.backends.tile_choice import adapter


class AdapterTile(NamedTuple):
    """A tile, by its number in csrc/cuda/operations.h, with the hidden units and rows of a block."""

    name: str
    number: int
    hidden: int
    rows: int


# In descending order of rows. A block uses at most 92 KB of shared memory and 128 registers for each of 256 threads:
# two run on a multiprocessor of Hopper; on smaller chips only one, with the largest tiles.
NARROW = (
    AdapterTile("narrow_128", 0, 64, 128),
    AdapterTile("narrow_64", 1, 64, 64),
    AdapterTile("narrow_32", 2, 64, 32),
)
WIDE = (AdapterTile("wide_64", 3, 128, 64), AdapterTile("wide_32", 4, 128, 32))
TILES = (*NARROW, *WIDE)
# Most rows for which one kernel loads single elements: with few rows, saving launches wins.
UNALIGNED_ROWS = 256


def tile_for(
    x_dtype: torch.dtype, dtype: torch.dtype, rows: int, features: int, bottleneck: int, aligned: bool
) -> tuple[AdapterTile | None, str]:
    """Return the tile of both passes and the reason; None if two products run one after the other.

    x_dtype: of x or dy, at least as wide as the weights' dtype; aligned: rows of x and of the down weight start on
    16-byte boundaries.
    """
    if dtype == torch.float32:
        return None, "float32 is not multiplied by tensor cores: two products around the activation"
    if x_dtype not in (dtype, torch.float32):
        return None, f"x in {x_dtype} is narrowed for two products in {dtype}"
    if bottleneck > WIDE[0].hidden:
        return None, f"{bottleneck} hidden units are more than the {WIDE[0].hidden} that one block holds"
    if 0 in (rows, features, bottleneck):
        return None, "an empty dimension leaves nothing to fuse"
    if not aligned and rows > UNALIGNED_ROWS:
        return None, f"predicted: loads of single elements in one kernel pay off up to {UNALIGNED_ROWS} rows"
    tiles = NARROW if bottleneck <= NARROW[0].hidden else WIDE
    best = adapter("cuda", rows, features, tuple(tile.rows for tile in tiles)).rows
    tile = next(tile for tile in tiles if tile.rows == best)
    return tile, "x is read once from memory and y written once"
