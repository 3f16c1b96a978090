"""Choice of a kernel's tile for a shape: the tile that `bounds.py` expects to be fastest on Hopper.

A function of only the shape, on every device, so that sums do not depend on the device. For 16-bit operands whose rows
start on 16-byte boundaries; other operands have one tile each.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from tss_kernels.backends import bounds, counts
from tss_kernels.backends.bounds import NARROW, SM_90, Chip, Prediction, divided_up
from tss_kernels.backends.counts import STEP, Counts

COMPARING_TILES = 4  # row tiles up to which the product compares scores itself; beyond, a launch before it does
MOST_RANGES = 16
# Factor by which ranges must be expected to win: the uncertainty of a prediction, which has no time of Python in it.
SURE = 1.3
_ROWS = 32  # rows of the smallest tile: between its multiples no choice changes
_KEPT = 4096  # cached choices: enough for all row numbers up to 131,072


def _rank(found: Prediction) -> tuple[float, ...]:
    """Return a sort key: expected time, then, for equal memory or L2 bounds, the next bounds, to have less to hide."""
    return found.expected, found.on_chip, max(found.bounds[name] for name in bounds.INSIDE)


def _whole(rows: int) -> int:
    return divided_up(max(rows, 1), _ROWS) * _ROWS


def ranges_of(summed: int, most: int = MOST_RANGES) -> list[int]:
    """Return the numbers of ranges into which the k tiles of the sum can be cut, with no range empty."""
    tiles, found = divided_up(summed, STEP), [1]
    while 2 * found[-1] <= min(tiles, most):
        found.append(2 * found[-1])
    return [ranges for ranges in found if divided_up(tiles, divided_up(tiles, ranges)) == ranges]


def compares_inside(kernel: str, rows: int, in_features: int, out_features: int) -> bool:
    """Return whether the launch that uses the scores compares them; the vendor's route does so when it writes W * g."""
    if kernel == "vendor":
        return True
    shape = rows, in_features, out_features
    tile = triton_product(*shape) if kernel == "triton" else cuda_product(*shape)[0]
    compares = kernel == "triton" or tile == counts.CUDA_SMALL  # the extension's other tiles cannot
    return compares and divided_up(rows, tile.rows) <= COMPARING_TILES


def cuda_product(rows: int, summed: int, features: int) -> tuple[Counts, int]:
    """Return the CUDA product's tile, and the number of ranges of its sums, which a second launch adds in order."""
    return _cuda_product(_whole(rows), summed, features)


@functools.lru_cache(_KEPT)
def _cuda_product(rows: int, summed: int, features: int) -> tuple[Counts, int]:
    def best(pairs: Iterable[tuple[Counts, int]]) -> tuple[Counts, int]:
        return min(pairs, key=lambda pair: _rank(product(*pair)))

    def product(tile: Counts, ranges: int) -> Prediction:
        return bounds.product(SM_90, tile, rows, summed, features, ranges)

    # For few rows scores may be compared inside, by the smallest tile only; sums by packed gates have the same bits.
    few = divided_up(rows, counts.CUDA_SMALL.rows) <= COMPARING_TILES
    tiles = (counts.CUDA_SMALL,) if few else counts.CUDA_PRODUCTS
    whole = best((tile, 1) for tile in counts.CUDA_PRODUCTS)
    cut = best((tile, ranges) for tile in tiles for ranges in ranges_of(summed))
    return cut if SURE * product(*cut).expected < product(*whole).expected else whole


def triton_product(rows: int, summed: int, features: int) -> Counts:
    """Return the tile of Triton's product."""
    return _triton_product(_whole(rows), summed, features)


@functools.lru_cache(_KEPT)
def _triton_product(rows: int, summed: int, features: int) -> Counts:
    tiles = counts.TRITON_NARROW if features <= NARROW else counts.TRITON_WIDE
    return min(tiles, key=lambda tile: _rank(bounds.product(SM_90, tile, rows, summed, features)))


def triton_short(rows: int, summed: int, features: int) -> tuple[Counts, int]:
    """Return Triton's tile for a product over few features, and the number of result tiles per program."""
    return _triton_short(_whole(rows), summed, features)


@functools.lru_cache(_KEPT)
def _triton_short(rows: int, summed: int, features: int) -> tuple[Counts, int]:
    most, found = divided_up(features, NARROW), [counts.SHORT_TILES]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    pairs = [(tile, count) for tile in counts.TRITON_SHORT for count in found if count <= most]
    return min(pairs, key=lambda pair: _rank(bounds.short(SM_90, *pair, rows, summed, features)))


ADAPTERS = {"triton": counts.TRITON_ADAPTER, "cuda": counts.CUDA_ADAPTER}


def adapter(kernel: str, rows: int, features: int, tile_rows: tuple[int, ...] = (128, 64, 32)) -> Counts:
    """Return an adapter's tile among those with `tile_rows` rows, by the counts for up to 64 hidden units."""
    return _adapter(kernel, _whole(rows), features, tile_rows)


@functools.lru_cache(_KEPT)
def _adapter(kernel: str, rows: int, features: int, tile_rows: tuple[int, ...]) -> Counts:
    tiles = [tile for tile in ADAPTERS[kernel] if tile.rows in tile_rows]
    return min(tiles, key=lambda tile: _rank(bounds.adapter(SM_90, tile, rows, features)))


def _product(chip: Chip, kernel: str, rows: int, in_features: int, out_features: int) -> Prediction:
    shape = rows, in_features, out_features
    if kernel == "vendor":
        return bounds.vendor(chip, *shape)
    if kernel == "cuda":
        tile, ranges = cuda_product(*shape)
        return bounds.product(chip, tile, *shape, ranges)
    if in_features <= NARROW and not compares_inside("triton", *shape):
        return bounds.short(chip, *triton_short(*shape), *shape)
    return bounds.product(chip, triton_product(*shape), *shape)


def predict(chip: Chip, op: str, kernel: str, shape: tuple[int, ...]) -> Prediction | None:
    """Predict a forward pass by "triton", "cuda" or "vendor" (W * g, then its product) for 16-bit operands.

    shape: (rows, in, out), for the adapter (rows, d, bottleneck). None if nothing was counted: other operations,
    features that are not multiples of 16, adapters of more than 64 hidden units.
    """
    if op not in ("packed_linear", "gated_linear", "gated_adapter") or any(size % 16 for size in shape[1:]):
        return None
    if 0 in shape:
        return None
    rows, in_features, out_features = shape
    if op == "gated_adapter":
        counted = kernel in ADAPTERS and out_features <= NARROW
        return bounds.adapter(chip, adapter(kernel, rows, in_features), rows, in_features) if counted else None
    found = _product(chip, kernel, rows, in_features, out_features)
    if op == "packed_linear":
        return found
    inside = compares_inside(kernel, rows, in_features, out_features)
    return bounds.from_scores(chip, found, in_features * out_features, inside)
