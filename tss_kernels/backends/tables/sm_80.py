"""Ampere's data-centre chips (sm_80), and the smaller ones of Ampere, Ada and Blackwell, with 99 KB of shared memory.

Nothing here was measured: Hopper's tiles if compiling shows that they fit and do not spill, else the vendor's product
on W * g.
"""

from __future__ import annotations

from tss_kernels.backends.tables import sm_90
from tss_kernels.backends.tables.table import Crossover, Table, Tile

_SPILLS = Crossover(0, "compiled for sm_80 the float32 tiles run out of registers")

TILES = {**sm_90.TILES}
# A 128 x 128 tile of the score gradient spills on sm_80.
TILES["scores_grad", "half", "wide"] = (Tile(64, 128, 64, 4, 3),)
# So does Hopper's unaligned float32 tile with 8 warps, by two registers.
TILES["scores_grad", "float32", "unaligned"] = (Tile(64, 64, 16, 4, 2),)
CROSSOVERS = {
    key: _SPILLS if key[1] == "float32" and key[0] != "scores_grad" else crossover
    for key, crossover in sm_90.CROSSOVERS.items()
}
TABLE = Table("sm_80", 166_912, 184.0, TILES, CROSSOVERS)

# float32 scores of a wide tile need up to 144 KB in three stages.
SMALL_TILES = {key: tuple(tile._replace(stages=min(tile.stages, 2)) for tile in tiles) for key, tiles in TILES.items()}
SMALL = Table("sm_86", 101_376, 184.0, SMALL_TILES, CROSSOVERS)
