"""How the Triton products of the gated linear map are launched: functions of architecture, dtype and shape alone."""

from __future__ import annotations

from typing import Literal

import torch

from tss_kernels.backends import tile_choice
from tss_kernels.backends.bounds import divided_up
from tss_kernels.backends.tables import Product, Table, Tile, kind_of, materialises, width_of
from tss_kernels.backends.tables.table import NARROW

Strategy = Literal["fused", "materialise"]

# A program for every multiprocessor of a large GPU; a constant, so that sums do not depend on the device.
PROGRAMS = 132
MAX_SPLITS = 64
MIN_SPLIT_ROWS = 256


def strategy_for(
    table: Table, product: Product, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> tuple[Strategy, str]:
    """ "fused" or "materialise" (W * g or dyᵀ x written once, for the vendor's product or by it), and why; `aligned` as
    by `is_aligned`."""
    chosen, why = materialises(table, product, dtype, rows, in_features, out_features, aligned)
    return ("materialise" if chosen else "fused"), why


def is_aligned(features: tuple[int, int], *tensors: torch.Tensor) -> bool:
    """Whether Triton can prove that 16 bytes may be loaded at once: aligned starts, one stride of 1, the rest and the
    numbers of features multiples of 16."""
    return all(size % 16 == 0 for size in features) and all(
        tensor.data_ptr() % 16 == 0
        and 1 in tensor.stride()
        and all(stride == 1 or stride % 16 == 0 for stride in tensor.stride())
        for tensor in tensors
    )


def loads_numbers(rows_of_a: int, warps: int) -> bool:
    """Whether a masked operand A of so many rows has the gates' numbers from a load (`gate_numbers`): if each warp of
    the product has rows of its own, 16 at a time."""
    return rows_of_a >= 16 * warps


def loads_numbers_by(table: Table, rows_of_a: int, warps: int) -> bool:
    """The same for the tiles of a table: compiled for Ampere, the largest run out of registers."""
    return table.name == "sm_90" and loads_numbers(rows_of_a, warps)


def pipelined(tile: Tile, steps: int) -> Tile:
    """The tile, pipelined no deeper than its loop is long: idle stages would only take shared memory."""
    return tile._replace(stages=max(1, min(tile.stages, steps)))


def _tile(
    table: Table, product: Product, dtype: torch.dtype, rows: int, summed: int, features: int, aligned: bool
) -> Tile:
    """The tile of a product whose result is (rows, features)."""
    tiles = table.tiles[product, kind_of(dtype), width_of(features, aligned)]
    if len(tiles) == 1:
        return tiles[0]
    best = tile_choice.triton_product(rows, summed, features).rows
    return next(tile for tile in tiles if tile.rows == best)


def forward_tile(
    table: Table, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> Tile:
    """Configuration of the fused forward product; `aligned` as by `is_aligned`."""
    tile = _tile(table, "forward", dtype, rows, in_features, out_features, aligned)
    return pipelined(tile, divided_up(in_features, tile.inner))


def input_grad_tile(
    table: Table, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> Tile:
    """Configuration of the fused input gradient; `aligned` as by `is_aligned`."""
    tile = _tile(table, "input_grad", dtype, rows, out_features, in_features, aligned)
    return pipelined(tile, divided_up(out_features, tile.out))


def is_short(dtype: torch.dtype, summed: int, aligned: bool) -> bool:
    """Whether a product over so few features runs by `triton_short.py`; without tensor cores its loads are not what
    takes the time."""
    return kind_of(dtype) == "half" and aligned and summed <= NARROW


def short_tile(table: Table, dtype: torch.dtype, rows: int, summed: int, features: int) -> tuple[Tile, int]:
    """The tile of a product over few features, and how many tiles of the result a program takes."""
    best, count = tile_choice.triton_short(rows, summed, features)
    tile = next(tile for tile in table.tiles["forward", kind_of(dtype), "narrow"] if tile.rows == best.rows)
    return pipelined(tile, count), count


def scores_grad_tile(
    table: Table, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> tuple[Tile, int]:
    """Configuration of the score gradient and the number of row ranges (a power of two) whose sums are added after."""
    tiles = table.tiles["scores_grad", kind_of(dtype), width_of(min(in_features, out_features), aligned)]
    # The largest tile that is not wider than it needs to be in either direction.
    fitting = [tile for tile in tiles if tile.out < 2 * max(out_features, 64) and tile.inner < 2 * max(in_features, 64)]
    tile = max(fitting, key=lambda tile: tile.out * tile.inner)
    tiles_of_one = divided_up(out_features, tile.out) * divided_up(in_features, tile.inner)
    splits = 1
    while splits < MAX_SPLITS and tiles_of_one * splits < PROGRAMS and rows >= 2 * splits * MIN_SPLIT_ROWS:
        splits *= 2
    return pipelined(tile, divided_up(divided_up(rows, splits), tile.rows)), splits
