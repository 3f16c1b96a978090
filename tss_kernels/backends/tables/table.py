"""Contents of a configuration table; the tables, one per architecture, are in the files beside this one."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

Kind = Literal["half", "float32"]
Width = Literal["narrow", "wide", "unaligned"]
Masking = Literal["forward", "input_grad"]  # the products with W * g
Product = Literal["forward", "input_grad", "scores_grad"]
Bound = Literal["memory", "arithmetic"]

ALWAYS = math.inf
MASKED: tuple[Masking, ...] = ("forward", "input_grad")
NARROW = 64  # features that one narrow tile covers


class Tile(NamedTuple):
    """Launch configuration: how much of each dimension a program processes at a time, its warps and pipeline depth."""

    out: int
    inner: int
    rows: int
    warps: int
    stages: int


class Crossover(NamedTuple):
    """Most rows for which the fused kernel runs; beyond, the vendor's product runs.

    The latter runs on W * g written once, or for the score gradient before W * (1 - I) is applied.

    basis: how the number was found, "measured ..." or "predicted ...".
    """

    rows: float
    basis: str


class Table(NamedTuple):
    """Configurations of one architecture: pure data, looked up by dtype and shape class.

    Attributes:
        name: the architecture.
        shared_memory: bytes that one program may use.
        balance: operations per element moved above which a product of 16-bit operands is bound by arithmetic.
        tiles: (product, kind, width) -> tiles in descending order of rows.
        crossovers: (product, kind, aligned, bound) -> up to how many rows the fused kernel runs.
    """

    name: str
    shared_memory: int
    balance: float
    tiles: dict[tuple[Product, Kind, Width], tuple[Tile, ...]]
    crossovers: dict[tuple[Product, Kind, bool, Bound], Crossover]


def crossovers_of(
    memory: Crossover,
    arithmetic: Crossover,
    unaligned: Crossover,
    float32: Crossover,
    products: tuple[Product, ...] = MASKED,
) -> dict[tuple[Product, Kind, bool, Bound], Crossover]:
    """Return the same crossovers for several products: 16-bit dtypes by bound, loads of single elements, float32."""
    found: dict[tuple[Product, Kind, bool, Bound], Crossover] = {}
    bounds: tuple[tuple[Bound, Crossover], ...] = (("memory", memory), ("arithmetic", arithmetic))
    for product in products:
        for bound, crossover in bounds:
            found[product, "half", True, bound] = crossover
            found[product, "half", False, bound] = unaligned
            found[product, "float32", True, bound] = found[product, "float32", False, bound] = float32
    return found


def kind_of(dtype: torch.dtype) -> Kind:
    """Return the kind: float32 is multiplied without tensor cores (or as tf32); the 16-bit dtypes share everything."""
    return "float32" if dtype == torch.float32 else "half"


def width_of(features: int, aligned: bool) -> Width:
    """Return the class of the tiled features; aligned: 16 bytes can be loaded at once everywhere."""
    if not aligned:
        return "unaligned"
    return "narrow" if features <= NARROW else "wide"


def bound_of(table: Table, in_features: int, out_features: int) -> Bound:
    """Return what limits a product of many rows: 2 in out operations against in + out elements moved, per row."""
    elements = max(in_features + out_features, 1)
    return "memory" if in_features * out_features <= table.balance * elements else "arithmetic"


def materialises(
    table: Table, product: Product, dtype: torch.dtype, rows: int, in_features: int, out_features: int, aligned: bool
) -> tuple[bool, str]:
    """Return whether the vendor's product should run, on W * g written once if it is masked, and the reason."""
    bound = bound_of(table, in_features, out_features)
    crossover = table.crossovers[product, kind_of(dtype), aligned, bound]
    chosen = rows > crossover.rows
    limit = "any number of" if crossover.rows == ALWAYS else f"up to {int(crossover.rows)}"
    return chosen, f"{bound}-bound: fused for {limit} rows on {table.name} ({crossover.basis})"
