"""The tiles that run are those that the counted bounds expect to be fastest, at every number of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from tss_kernels.backends import bounds, counts, tile_choice
from tss_kernels.backends.bounds import SM_90
from tss_kernels.backends.counts import Counts
from tss_kernels.backends.tables import sm_80, sm_90
from tss_kernels.backends.tables.cuda import tiling_for
from tss_kernels.backends.tables.cuda_adapter import tile_for as cuda_adapter_tile
from tss_kernels.backends.tile_choice import SURE, ranges_of

BFLOAT16 = torch.bfloat16
ROWS = (1, 100, 528, *(2**power for power in range(9, 17)), 6144, 12288, 24576)
SHAPES = [(1024, 64), (64, 1024), (1024, 1024)]  # what is summed, features of the result
CUDA_RANGES = (1, 2, 4, 8, 16)

Choose = Callable[[int, int, int], tuple[Counts, int]]


def expected(tile: Counts, ranges: int, rows: int, summed: int, features: int) -> float:
    return bounds.product(SM_90, tile, rows, summed, features, ranges).expected


def slower_than_another(choose: Choose, tiles: Iterable[Counts], ranges: Iterable[int]) -> list[tuple[int, ...]]:
    """Where another tile is expected to be faster: any whose sums are in one range, or by more than what is known."""
    found = []
    for summed, features in SHAPES:
        fitting = [tile for tile in tiles if tile.features == tiles_features(tiles, features)]
        for rows in ROWS:
            chosen = expected(*choose(rows, summed, features), rows, summed, features)
            for tile in fitting or tiles:
                for cut in ranges:
                    other = expected(tile, cut, rows, summed, features) * (1 if cut == 1 else SURE)
                    if other < chosen * 0.999 and not (cut > 1 and rows <= 128 and tile.rows > 32):
                        found.append((rows, summed, features))
    return found


def tiles_features(tiles: Iterable[Counts], features: int) -> int | None:
    """The features of the tiles that a width has where each has its own, as in Triton; None where all are tried."""
    sizes = {tile.features for tile in tiles}
    return None if tiles is counts.CUDA_PRODUCTS else min(sizes) if features <= min(sizes) else max(sizes)


def by_a_constant(tiles: Iterable[Counts], programs: int) -> Choose:
    """As it was: the tile with most rows that makes so many programs."""

    def choose(rows: int, summed: int, features: int) -> tuple[Counts, int]:
        fitting = sorted(tiles, key=lambda tile: -tile.rows * tile.features)
        made = (-(-rows // tile.rows) * -(-features // tile.features) for tile in fitting)
        return next((tile for tile, count in zip(fitting, made, strict=True) if count >= programs), fitting[-1]), 1

    return choose


def of_triton(rows: int, summed: int, features: int) -> tuple[Counts, int]:
    return tile_choice.triton_product(rows, summed, features), 1


TRITON = (*counts.TRITON_NARROW, *counts.TRITON_WIDE)


def test_no_other_tile_is_expected_to_be_faster():
    assert not slower_than_another(tile_choice.cuda_product, counts.CUDA_PRODUCTS, CUDA_RANGES)
    assert not slower_than_another(of_triton, TRITON, (1,))


@pytest.mark.parametrize("programs", [99, 132])
def test_a_choice_by_a_constant_is_noticed(programs):
    slow = slower_than_another(by_a_constant(counts.CUDA_PRODUCTS, programs), counts.CUDA_PRODUCTS, CUDA_RANGES)
    assert {(512, 1024, 64), (8192, 1024, 64), (512, 1024, 1024)} <= set(slow)
    slow = slower_than_another(by_a_constant(counts.TRITON_NARROW, programs), counts.TRITON_NARROW, (1,))
    assert {(4096, 1024, 64), (12288, 1024, 64)} <= set(slow)


def test_tiles_by_hand():
    """132 multiprocessors take whole tiles: of 8,192 rows 256 tiles of 32 are two waves, 128 of 64 or 64 of 128 one."""
    assert tile_choice.triton_product(8192, 1024, 64).rows == 64
    assert tile_choice.cuda_product(8192, 1024, 64) == (counts.CUDA_NARROW, 1)
    # One wave of the smallest tiles is as good as can be.
    assert tile_choice.cuda_product(4096, 1024, 64) == (counts.CUDA_SMALL, 1)
    # 16 tiles of 512 rows leave most multiprocessors idle: so what is summed is cut in eight, 128 programs.
    assert tile_choice.cuda_product(512, 1024, 64) == (counts.CUDA_SMALL, 8)
    # 64 features are one k tile, which cannot be cut.
    assert tile_choice.cuda_product(512, 64, 1024)[1] == 1


def test_ranges_pay_for_their_launch():
    """The sums of ranges are written and read, and a second launch waits for the first."""
    tile, shape = counts.CUDA_SMALL, (512, 1024, 64)
    whole, cut = (bounds.product(SM_90, tile, *shape, ranges) for ranges in (1, 8))
    assert (whole.launches, cut.launches) == (1, 2)
    inside = (326 + 2 * 230) * 4 / 4 / 1.755e9
    assert cut.bounds["issue"] == pytest.approx(inside + 2 * 8 * 4 * 512 * 64 / 7e12)
    for rows in ROWS:
        for summed, features in (*SHAPES, (4096, 64)):
            tile, ranges = tile_choice.cuda_product(rows, summed, features)
            if ranges > 1:
                whole = min(expected(other, 1, rows, summed, features) for other in counts.CUDA_PRODUCTS)
                assert whole > SURE * expected(tile, ranges, rows, summed, features)


def test_the_table_of_ranges_has_the_models_numbers():
    text = (Path(__file__).parents[2] / "csrc" / "README.md").read_text()
    line = r"^\| ([\d,]+) " + r"\| ([\d.]+) \| ([\d.]+) \((\d+)\) " * 2 + r"\|$"
    found = re.findall(line, text, flags=re.MULTILINE)
    assert len(found) == 6
    for rows_said, *cells in found:
        rows = int(rows_said.replace(",", ""))
        for summed, (whole_said, cut_said, ranges_said) in zip((1024, 4096), (cells[:3], cells[3:]), strict=True):
            whole = [bounds.product(SM_90, tile, rows, summed, 64) for tile in counts.CUDA_PRODUCTS]
            tile, ranges = tile_choice.cuda_product(rows, summed, 64)
            times = min(whole, key=lambda one: one.expected), bounds.product(SM_90, tile, rows, summed, 64, ranges)
            assert ranges == int(ranges_said)
            assert [one.seconds * 1e6 for one in times] == pytest.approx([float(whole_said), float(cut_said)], abs=0.06)


@pytest.mark.parametrize(
    ("summed", "wanted"), [(64, [1]), (65, [1, 2]), (320, [1, 2]), (448, [1, 2, 4]), (1024, [1, 2, 4, 8, 16])]
)
def test_no_range_is_empty(summed, wanted):
    assert ranges_of(summed) == wanted


@pytest.mark.parametrize("rows", [1, 33, 100, 128])
@pytest.mark.parametrize("summed", [1024, 4096])
def test_scores_compared_inside_are_summed_as_packed_gates_are(rows, summed):
    tile, ranges = tile_choice.cuda_product(rows, summed, 64)
    assert (tile, ranges > 1) == (counts.CUDA_SMALL, True)


def test_between_multiples_of_the_smallest_tile_nothing_changes():
    for choose in (tile_choice.cuda_product, tile_choice.triton_product, tile_choice.triton_short):
        assert len({choose(rows, 64, 1024) for rows in range(481, 513)}) == 1


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("features", [64, 128, 1024, 4096])
@pytest.mark.parametrize("warpgroups", [True, False])
def test_tilings_of_the_extension_are_those_chosen(rows, features, warpgroups):
    tiling, ranges = tiling_for(BFLOAT16, rows, 1024, features, True, warpgroups)
    tile, cut = tile_choice.cuda_product(rows, 1024, features)
    assert (tiling.features, tiling.rows, ranges) == (tile.features, tile.rows, cut)
    assert tiling.name.endswith("groups") == (warpgroups and tiling.rows == 128)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bottleneck", [64, 128])
def test_adapters_are_those_chosen(rows, bottleneck):
    tile, _ = cuda_adapter_tile(BFLOAT16, BFLOAT16, rows, 1024, bottleneck, True)
    assert tile is not None
    among = [
        (bounds.adapter(SM_90, one, rows, 1024).expected, one.rows)
        for one in counts.CUDA_ADAPTER
        if bottleneck == 64 or one.rows < 128
    ]
    assert (tile.rows, tile.hidden) == (min(among)[1], bottleneck)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("table", [sm_90.TABLE, sm_80.TABLE, sm_80.SMALL], ids=lambda table: table.name)
def test_launches_of_triton_are_those_chosen(rows, table):
    pytest.importorskip("triton")
    from tss_kernels.gated_adapter import triton as adapter
    from tss_kernels.gated_linear import triton_tiles as tiles

    for features in (64, 128, 1024, 4096):
        one = tile_choice.triton_product(rows, 1024, features)
        tile = tiles.forward_tile(table, BFLOAT16, rows, 1024, features, True)
        assert one[:3] == (tile.out, tile.rows, tile.warps)
        tile = tiles.input_grad_tile(table, BFLOAT16, rows, features, 1024, True)
        assert one[:3] == (tile.inner, tile.rows, tile.warps)
        tile, count = tiles.short_tile(table, BFLOAT16, rows, 64, features)
        short = tile_choice.triton_short(rows, 64, features)
        assert (short[0].rows, short[1]) == (tile.rows, count)
    tile, _ = adapter.tile_for(BFLOAT16, BFLOAT16, rows, 1024, 64, True)
    assert tile is not None
    assert tile_choice.adapter("triton", rows, 1024)[:3] == (tile.hidden, tile.rows, tile.warps)
