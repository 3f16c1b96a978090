"""Launch configurations by architecture: tables of constants, and the choice of a table for a device."""

from __future__ import annotations

import functools

import torch

from tss_kernels.backends.tables import sm_80, sm_90
from tss_kernels.backends.tables.table import (
    ALWAYS,
    Crossover,
    Kind,
    Masking,
    Product,
    Table,
    Tile,
    Width,
    kind_of,
    materialises,
    width_of,
)

__all__ = [
    "ALWAYS",
    "TABLES",
    "Crossover",
    "Kind",
    "Masking",
    "Product",
    "Table",
    "Tile",
    "Width",
    "kind_of",
    "materialises",
    "table_for",
    "table_of",
    "width_of",
]

TABLES = {table.name: table for table in (sm_90.TABLE, sm_80.TABLE, sm_80.SMALL)}


def table_of(major: int, minor: int) -> Table:
    """Return the table for a compute capability: the largest shared memory class that it has."""
    if major in (9, 10):
        return sm_90.TABLE
    return sm_80.TABLE if (major, minor) == (8, 0) else sm_80.SMALL


def table_for(device: torch.device) -> Table:
    """Return the table for a device; the CPU, where Triton's interpreter runs, uses Hopper's."""
    if device.type != "cuda":
        return sm_90.TABLE
    return _table_of_index(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _table_of_index(index: int) -> Table:
    return table_of(*torch.cuda.get_device_capability(index))
