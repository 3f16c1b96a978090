"""Hopper (sm_90), and Blackwell's data-centre chips, whose shared memory is as large.

Nothing here was measured yet: tiles were chosen by compiling (registers, shared memory, no spills), crossovers by
counting bytes and operations.
"""

from __future__ import annotations

from tss_kernels.backends.tables.table import ALWAYS, Crossover, Kind, Product, Table, Tile, Width, crossovers_of

# If rows do not start on 16-byte boundaries, every element has its own address: larger tiles run out of registers.
_UNALIGNED = (Tile(64, 64, 32, 8, 2),)
_UNALIGNED_FLOAT32 = (Tile(64, 64, 16, 8, 2),)
_FLOAT32 = (Tile(64, 64, 32, 4, 2),)
_NARROW = (Tile(64, 64, 128, 4, 3), Tile(64, 64, 64, 4, 3), Tile(64, 64, 32, 4, 3))

TILES: dict[tuple[Product, Kind, Width], tuple[Tile, ...]] = {
    ("forward", "half", "narrow"): _NARROW,
    ("forward", "half", "wide"): (Tile(128, 64, 128, 8, 3), Tile(128, 64, 64, 8, 3), Tile(128, 64, 32, 8, 3)),
    ("input_grad", "half", "narrow"): _NARROW,
    ("input_grad", "half", "wide"): (Tile(64, 128, 128, 8, 3), Tile(64, 128, 64, 8, 3), Tile(64, 128, 32, 8, 3)),
}
_PRODUCTS: tuple[Product, ...] = ("forward", "input_grad", "scores_grad")
for _product in _PRODUCTS:
    TILES[_product, "half", "unaligned"] = _UNALIGNED
    TILES[_product, "float32", "narrow"] = TILES[_product, "float32", "wide"] = _FLOAT32
    TILES[_product, "float32", "unaligned"] = _UNALIGNED_FLOAT32
# The score gradient has tiles of out x in: narrow if one of the two has at most 64 features.
TILES["scores_grad", "half", "narrow"] = (Tile(64, 64, 64, 4, 3), Tile(64, 128, 64, 4, 3), Tile(128, 64, 64, 4, 3))
TILES["scores_grad", "half", "wide"] = (Tile(128, 128, 64, 8, 3),)

# By `bounds.py` at 1,024 -> 1,024: the fused kernel runs while it takes at most 1.3 times the vendor's route, which is
# within the uncertainty of both, and it saves a launch from Python, which is not in the prediction.
_ARITHMETIC = Crossover(2048, "predicted: 11.5 us against the vendor's 11.1 at 2,048 rows, 22.0 against 14.2 at 4,096")
_MEMORY = Crossover(ALWAYS, "predicted: both are limited by moving x and y once")
_UNALIGNED_ROWS = Crossover(512, "predicted: loads of single elements; few rows save the second launch")
_FLOAT32_ROWS = Crossover(512, "predicted: the vendor's float32 product is faster; few rows save the second launch")

# The score gradient needs no mask, so fusing only gains its last step: at 1,024 features its loop's time in shared
# memory is no less than the vendor's total, and the sums of each range of rows are written once more.
_UNMASKED = Crossover(1024, "predicted: beyond, the ranges' sums cost more than the vendor's one product of all rows")

CROSSOVERS = crossovers_of(_MEMORY, _ARITHMETIC, _UNALIGNED_ROWS, _FLOAT32_ROWS) | crossovers_of(
    _MEMORY, _UNMASKED, _UNALIGNED_ROWS, _FLOAT32_ROWS, products=("scores_grad",)
)

TABLE = Table("sm_90", 232_448, 184.0, TILES, CROSSOVERS)
