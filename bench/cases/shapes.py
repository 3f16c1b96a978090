"""The decisive shapes for GPU kernels: each backend against the floor, and nothing that must be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.cases import adamw, gated_adapter, gated_linear
from bench.cases.sizes import Sizes
from bench.core.case import Case

FEW, SOME, MANY = 4096, 16384, 65536  # rows
LARGEST = "100 M scores"
# in, out -> rows: narrow on either side, and square, which is bound by arithmetic.
PRODUCTS = {(1024, 64): (FEW, SOME, MANY), (64, 1024): (FEW, MANY), (1024, 1024): (SOME,)}


def _against_the_floor(case: Case) -> Case:
    return replace(case, variants=tuple(one for one in case.variants if one.role != "rival"))


def _all(sizes: Sizes) -> Iterator[Case]:
    products = {(24, 8): (33,)} if sizes.tiny else PRODUCTS
    for operation in gated_linear.OPERATIONS:
        for features, counts in products.items():
            for rows in counts:
                yield gated_linear.case(sizes, operation, rows, features, compiled=False)
    (hidden, bottleneck), *_ = sizes.adapters
    for with_gradients in (False, True):
        for rows in (33,) if sizes.tiny else (FEW, MANY):
            yield gated_adapter.case(sizes, (rows, hidden, bottleneck), with_gradients, compiled=False)
    name = LARGEST if LARGEST in sizes.scores else next(iter(sizes.scores))
    yield adamw.case(name, sizes, sizes.scores[name], "update")


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield the cases on a GPU or at tiny sizes; a CPU's shapes are in the groups of their operations."""
    if sizes.device.type == "cuda" or sizes.tiny:
        yield from map(_against_the_floor, _all(sizes))
