"""Launch configurations of the gated linear map's Triton products: functions of architecture, dtype and shape only."""

from __future__ import annotations

from typing import Literal

import torch

from tss_kernels.backends import tile_choice
from tss_kernels.backends.bounds import divided_up
from tss_kernels.backends.tables import Product, Table, Tile, kind_of, materialises, width_of
from tss_kernels.backends.tables.table import NARROW

Strategy = Literal["fused", "materialise"]

# One program per multiprocessor of a large GPU; a constant, so that sums do not depend on the device.
PROGRAMS = 132
MAX_SPLITS = 64
MIN_SPLIT_ROWS = 256


def strategy_for(
    table: Table, product: Product, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> tuple[Strategy, str]:
    """Return "fused" or "materialise", and why; `aligned`: see `is_aligned`.

    "materialise": W * g is written once for the vendor's product, or dyᵀ x once by it.
    """
    chosen, why = materialises(table, product, dtype, rows, in_features, out_features, aligned)
    return ("materialise" if chosen else "fused"), why


def is_aligned(features: tuple[int, int], *tensors: torch.Tensor) -> bool:
    """Return whether Triton can prove that 16 bytes may be loaded at once.

    Starts must be aligned, one stride 1, and the other strides and the numbers of features multiples of 16.
    """
    return all(size % 16 == 0 for size in features) and all(
        tensor.data_ptr() % 16 == 0
        and 1 in tensor.stride()
        and all(stride == 1 or stride % 16 == 0 for stride in tensor.stride())
        for tensor in tensors
    )


def loads_numbers(rows_of_a: int, warps: int) -> bool:
    """Return whether a masked operand A of so many rows gets the gate numbers from a load (see `gate_numbers`).

    It does if each warp of the product has its own rows, 16 at a time.
    """
    return rows_of_a >= 16 * warps


def loads_numbers_by(table: Table, rows_of_a: int, warps: int) -> bool:
    """Return the same for a table's tiles, or False except on sm_90: on Ampere the largest run out of registers."""
    return table.name == "sm_90" and loads_numbers(rows_of_a, warps)


def pipelined(tile: Tile, steps: int) -> Tile:
    """Limit the tile's pipeline stages to the steps of its loop: idle stages would only use shared memory."""
    return tile._replace(stages=max(1, min(tile.stages, steps)))


def _tile(
    table: Table, product: Product, dtype: torch.dtype, rows: int, summed: int, features: int, aligned: bool
) -> Tile:
    """Return the tile of a product whose result is (rows, features)."""
    tiles = table.tiles[product, kind_of(dtype), width_of(features, aligned)]
    if len(tiles) == 1:
        return tiles[0]
    best = tile_choice.triton_product(rows, summed, features).rows
    return next(tile for tile in tiles if tile.rows == best)


def forward_tile(
    table: Table, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> Tile:
    """Return the configuration of the fused forward product; `aligned`: see `is_aligned`."""
    tile = _tile(table, "forward", dtype, rows, in_features, out_features, aligned)
    return pipelined(tile, divided_up(in_features, tile.inner))


def input_grad_tile(
    table: Table, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> Tile:
    """Return the configuration of the fused input gradient; `aligned`: see `is_aligned`."""
    tile = _tile(table, "input_grad", dtype, rows, out_features, in_features, aligned)
    return pipelined(tile, divided_up(out_features, tile.out))


def is_short(dtype: torch.dtype, summed: int, aligned: bool) -> bool:
    """Return whether a product over `summed` features, if they are few and aligned, runs in `triton_short.py`.

    Only with tensor cores: without them its loads are not what takes the time.
    """
    return kind_of(dtype) == "half" and aligned and summed <= NARROW


def short_tile(table: Table, dtype: torch.dtype, rows: int, summed: int, features: int) -> tuple[Tile, int]:
    """Return the tile of a product over few features, and the number of result tiles per program."""
    best, count = tile_choice.triton_short(rows, summed, features)
    tile = next(tile for tile in table.tiles["forward", kind_of(dtype), "narrow"] if tile.rows == best.rows)
    return pipelined(tile, count), count


def scores_grad_tile(
    table: Table, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> tuple[Tile, int]:
    """Return the tile of the score gradient, and the number (a power of two) of row ranges to add afterwards."""
    tiles = table.tiles["scores_grad", kind_of(dtype), width_of(min(in_features, out_features), aligned)]
    # The largest tile that is no wider than necessary in either direction.
    fitting = [tile for tile in tiles if tile.out < 2 * max(out_features, 64) and tile.inner < 2 * max(in_features, 64)]
    tile = max(fitting, key=lambda tile: tile.out * tile.inner)
    tiles_of_one = divided_up(out_features, tile.out) * divided_up(in_features, tile.inner)
    splits = 1
    while splits < MAX_SPLITS and tiles_of_one * splits < PROGRAMS and rows >= 2 * splits * MIN_SPLIT_ROWS:
        splits *= 2
    return pipelined(tile, divided_up(divided_up(rows, splits), tile.rows)), splits
