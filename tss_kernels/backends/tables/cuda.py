"""Tilings of the CUDA C++ products, and where writing W * g once for the vendor's product wins.

Nothing here was measured: tilings are chosen by counted instructions, crossovers by counting bytes and operations.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from tss_kernels.backends.cuda import kernels
from tss_kernels.backends.tables import TABLES, table_for
from tss_kernels.backends.tables.table import ALWAYS, Crossover, Table, crossovers_of
from tss_kernels.backends.tile_choice import cuda_product


class Tiling(NamedTuple):
    """A tiling, by its number in csrc/cuda/operations.h, with the features and rows of a block."""

    name: str
    number: int
    features: int
    rows: int


GENERAL = Tiling("general", 0, 64, 32)  # any strides, elements loaded one by one
SMALL = Tiling("small", 1, 64, 32)
NARROW = Tiling("narrow", 2, 64, 128)
WIDE = Tiling("wide", 3, 128, 128)
NARROW_GROUPS = Tiling("narrow_groups", 4, 64, 128)  # with Hopper's warpgroup instructions
WIDE_GROUPS = Tiling("wide_groups", 5, 128, 128)
TILINGS = (GENERAL, SMALL, NARROW, WIDE, NARROW_GROUPS, WIDE_GROUPS)
# float32 has one kernel for all shapes and strides.
FLOAT32 = Tiling("float32", 0, 64, 64)

_MEMORY = Crossover(ALWAYS, "predicted: both are limited by moving x and y once")
# By `bounds.py`; as in sm_90.py, saving a launch from Python is worth a difference within the model's uncertainty.
_ARITHMETIC = Crossover(2048, "predicted: 11.5 us against the vendor's 11.1 at 2,048 rows, 22.0 against 14.2 at 4,096")
_GENERAL = Crossover(256, "predicted: loads of single elements; few rows save the second launch")
_FLOAT32 = Crossover(256, "predicted: the vendor's float32 product is faster; few rows save the second launch")

CROSSOVERS = crossovers_of(_MEMORY, _ARITHMETIC, _GENERAL, _FLOAT32)


@functools.cache
def with_crossovers(table: str) -> Table:
    """Return a table by name, with this backend's crossovers."""
    return TABLES[table]._replace(crossovers=CROSSOVERS)


def cuda_table(device: torch.device) -> Table:
    """Return the device's table with this backend's crossovers."""
    return with_crossovers(table_for(device).name)


def has_warpgroups(device: torch.device) -> bool:
    """Return whether the tilings with Hopper's instructions run on the device; on the CPU, emulated, they do.

    The compute capability is not enough: an installation for other architectures, or a driver that was told to compile
    PTX itself, has no such code even on Hopper. So the module reports what the driver loaded from it.
    """
    if device.type != "cuda":
        return True
    return _has_warpgroups(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _has_warpgroups(index: int) -> bool:
    return kernels(torch.device("cuda", index)).has_warpgroups(index)


def tiling_for(
    dtype: torch.dtype, rows: int, summed: int, features: int, aligned: bool, warpgroups: bool
) -> tuple[Tiling, int]:
    """Return the tiling of a gated product with a (rows, features) result, and the ranges of its `summed` features.

    aligned: 16 bytes can be copied at once. If there are several ranges, a second launch adds their sums in order.
    """
    if dtype == torch.float32:
        return FLOAT32, 1
    if not aligned:
        return GENERAL, 1
    tile, ranges = cuda_product(rows, summed, features)
    return next(
        (tiling, ranges)
        for tiling in (SMALL, *((NARROW_GROUPS, WIDE_GROUPS) if warpgroups else (NARROW, WIDE)))
        if (tiling.features, tiling.rows) == (tile.features, tile.rows)
    )
