"""What the CUDA kernels execute: exactly what follows from shapes and tilings alone."""

from __future__ import annotations

import os

import pytest
import torch

import tss_kernels
from tests.kernels.inspectors.cuda_counts import executed, layer
from tss_kernels.backends.cuda import kernels
from tss_kernels.backends.registry import EMULATED
from tss_kernels.backends.tables.cuda import FLOAT32, GENERAL, NARROW_GROUPS, SMALL, TILINGS, WIDE, Tiling
from tss_kernels.backends.tables.cuda_adapter import TILES, AdapterTile
from tss_kernels.gated_adapter import cuda as adapter
from tss_kernels.gated_linear import cuda as linear
from tss_kernels.gates import cuda as gates
from tss_kernels.multi_task import cuda as many_tasks
from tss_kernels.multi_task.grouped import Groups

K_TILE = 64  # of what is summed over, in every product
PIECE = 16  # rows or columns of a block's tile that one ldmatrix brings a warp, for 16 of what is summed over
SIZES = [(200, 352, 72), (33, 64, 136), (128, 256, 128)]
# How many warps share a tile's features and its rows; those of warpgroups load features alone.
WARPS = {"general": (2, 2), "small": (2, 2), "narrow": (1, 4), "wide": (2, 4)}
ADAPTER_WARPS = {  # of both products, and the depth of the ring
    "narrow_128": ((2, 4), (2, 4), 3),
    "narrow_64": ((2, 4), (2, 4), 4),
    "narrow_32": ((4, 2), (4, 2), 4),
    "wide_64": ((4, 2), (2, 4), 3),
    "wide_32": ((4, 2), (4, 2), 3),
}
HYPER = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "site": "update"}


@pytest.fixture(autouse=True)
def _emulated(cuda_kernels):
    if EMULATED not in os.environ:
        pytest.skip("kernels are counted where they run compiled for the CPU, and this machine has a GPU")
    with tss_kernels.use_backend("cuda"):
        yield


def up(count: int, tile: int) -> int:
    """Tiles that so many need."""
    return -(-count // tile)


def loads_of(features: int, rows: int, warps: tuple[int, int]) -> int:
    """ldmatrix of a tile for 16 of what is summed over: every warp loads its share of both operands."""
    return warps[1] * features // PIECE + warps[0] * rows // PIECE


def by_words(rows: int, columns: int) -> int:
    """Bytes of packed gates that are copied: all where rows are made of whole words, else none, by single bytes."""
    return rows * up(columns, 8) if up(columns, 8) % 4 == 0 else 0


@pytest.fixture
def traced():
    if not kernels(torch.device("cpu")).traced:
        pytest.skip("single accesses are counted on Linux, and not where a sanitizer watches them")


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "input_grad"])
@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: tiling.name)
def test_a_product_multiplies_its_tiles_and_reads_every_operand_once_for_a_block(tiling: Tiling, transposed, sizes):
    rows, in_features, out_features = sizes
    one = layer(*sizes, torch.bfloat16)
    features, depth = (in_features, out_features) if transposed else (out_features, in_features)
    if transposed:
        counts = executed(lambda: linear.input_grad(one.dy, one.weight, one.packed, tiling, False))
    else:
        counts = executed(lambda: linear.packed_linear(one.x, one.weight, one.packed, None, tiling, False))
    row_blocks, column_blocks, k_tiles = up(rows, tiling.rows), up(features, tiling.features), up(depth, K_TILE)
    products = row_blocks * tiling.rows * column_blocks * tiling.features * k_tiles * K_TILE
    activations, weight = 2 * rows * depth, 2 * in_features * out_features
    gates = by_words(out_features, in_features)
    # The general tiling loads elements by themselves; only its gates are copied.
    copied = row_blocks * gates + (0 if tiling == GENERAL else column_blocks * activations + row_blocks * weight)
    groups = tiling.name.endswith("groups")
    assert counts["launches"] == 1
    assert counts["blocks"] == row_blocks * column_blocks
    assert (counts["multiply_adds"], counts["group_multiply_adds"]) == ((0, products) if groups else (products, 0))
    assert counts["copied_bytes"] == copied
    chunks = 0 if tiling == GENERAL else (tiling.rows + tiling.features) * K_TILE // 8
    assert counts["copies"] == counts["blocks"] * k_tiles * (chunks + tiling.features * K_TILE // 32)
    loads = tiling.features // PIECE if groups else loads_of(tiling.features, tiling.rows, WARPS[tiling.name])
    assert counts["matrix_loads"] == counts["blocks"] * k_tiles * K_TILE // PIECE * loads
    assert counts["barriers"] == counts["blocks"] * (k_tiles + 2)  # one a tile, and around the result on its way out
    assert counts["conflicts"] == counts["exchanges"] == counts["atomics"] == 0


@pytest.mark.parametrize(("ranges", "blocks_of_tiles"), [(2, [3, 3]), (4, [2, 2, 2]), (6, [1] * 6)])
@pytest.mark.parametrize("tiling", [SMALL, NARROW_GROUPS], ids=lambda tiling: tiling.name)
def test_ranges_read_every_operand_once_and_are_added_by_a_second_launch(tiling, ranges, blocks_of_tiles):
    rows, in_features, out_features = 40, 352, 72
    one = layer(rows, in_features, out_features, torch.bfloat16)
    call = one.x, one.weight, one.packed, None, tiling, False
    whole = executed(lambda: linear.packed_linear(*call))
    counts = executed(lambda: linear.packed_linear(*call, ranges))
    tiles = up(rows, tiling.rows) * up(out_features, tiling.features)
    assert sum(blocks_of_tiles) == up(in_features, K_TILE)
    assert counts["launches"] == 2
    assert counts["blocks"] == tiles * len(blocks_of_tiles) + up(rows * out_features, 256)
    alike = ("copied_bytes", "copies", "matrix_loads", "multiply_adds", "group_multiply_adds", "conflicts", "atomics")
    assert [counts[name] for name in alike] == [whole[name] for name in alike]
    # One a tile, and one after the last; results do not go out through shared memory.
    assert counts["barriers"] == tiles * (up(in_features, K_TILE) + len(blocks_of_tiles))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32_products_wait_twice_for_sixteen_of_what_they_sum(sizes):
    rows, in_features, out_features = sizes
    one = layer(*sizes, torch.float32)
    for call, features, depth, many in (
        (
            lambda: linear.packed_linear(one.x, one.weight, one.packed, None, FLOAT32, False),
            out_features,
            in_features,
            rows,
        ),
        (lambda: linear.input_grad(one.dy, one.weight, one.packed, FLOAT32, False), in_features, out_features, rows),
        (lambda: linear.scores_grad(one.dy, one.x, one.weight, one.scores), out_features, rows, in_features),
    ):
        counts = executed(call)
        blocks = up(features, 64) * up(many, 64)
        assert (counts["launches"], counts["blocks"], counts["barriers"]) == (1, blocks, 2 * blocks * up(depth, 16))
        assert sum(counts.values()) == 1 + blocks + counts["barriers"]  # and nothing else of all that is counted


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "input_grad"])
def test_rows_of_many_tasks_read_their_weight_once_for_a_tile_of_one_task(transposed):
    """Entries of 20 rows, one of tasks 0 and 1 and three of task 2: 1, 1 and 2 tiles of 32 rows; others end at once."""
    in_features, out_features, rows, tasks, tiles = 352, 72, 100, 5, 4
    features, depth = (in_features, out_features) if transposed else (out_features, in_features)
    one = layer(rows, in_features, out_features, torch.bfloat16)
    ids, bank = torch.tensor([2, 0, 2, 1, 2]), one.packed.repeat(tasks, 1, 1)
    made: list[Groups] = []
    counts = executed(lambda: made.append(many_tasks.KERNELS.group(ids, 20, tasks, torch.bfloat16)))
    (groups,) = made
    assert (counts["launches"], counts["blocks"]) == (1, tasks + 1)
    # Two around the count, and two for the 256 entries that are put in order at a time, where a task has any.
    assert counts["barriers"] == 2 * (tasks + 1) + 2 * 3
    if transposed:
        counts = executed(lambda: many_tasks.KERNELS.product_grad(one.dy, one.weight, bank, groups, "", None, None))
    else:
        counts = executed(lambda: many_tasks.KERNELS.product(one.x, one.weight, bank, groups, None, "", None))
    column_blocks, k_tiles = up(features, SMALL.features), up(depth, K_TILE)
    working = tiles * column_blocks
    assert (counts["launches"], counts["blocks"]) == (1, groups.tiles.shape[0] * column_blocks)
    assert counts["multiply_adds"] == working * SMALL.rows * SMALL.features * k_tiles * K_TILE
    weight, gates_of_task = 2 * in_features * out_features, by_words(out_features, in_features)
    assert counts["copied_bytes"] == tiles * (weight + gates_of_task) + column_blocks * 2 * rows * depth
    assert counts["matrix_loads"] == working * k_tiles * K_TILE // PIECE * loads_of(64, 32, WARPS["small"])
    assert counts["barriers"] == working * (k_tiles + 2)  # one a tile, around the list of rows, and the last
    assert counts["conflicts"] == counts["exchanges"] == counts["atomics"] == 0


@pytest.mark.parametrize("rows", [20, 64])
def test_scores_within_a_product_are_compared_by_one_ballot_for_32(rows):
    one = layer(rows, 352, 72, torch.bfloat16)
    counts = executed(lambda: linear.forward(one.x, one.weight, one.scores, None, 0.0))
    assert counts["launches"] == 1
    assert counts["exchanges"] == counts["blocks"] * up(352, K_TILE) * 64 * K_TILE // 32
    assert counts["conflicts"] == 0


@pytest.mark.parametrize("rows", [200, 600])
@pytest.mark.parametrize(("in_features", "out_features", "tile"), [(352, 72, (64, 128)), (72, 352, (128, 64))])
def test_the_score_gradient_multiplies_its_tiles_in_ranges_of_rows(rows, in_features, out_features, tile):
    one = layer(rows, in_features, out_features, torch.bfloat16)
    counts = executed(lambda: linear.scores_grad(one.dy, one.x, one.weight, one.scores))
    out_blocks, in_blocks = up(out_features, tile[0]), up(in_features, tile[1])
    ranges = [200] if rows == 200 else [320, 280]  # halves in whole tiles
    tiles = sum(up(some, K_TILE) for some in ranges)
    blocks = out_blocks * in_blocks
    assert counts["launches"] == len(ranges)  # the second adds the ranges
    assert counts["blocks"] == blocks * len(ranges) + (0 if rows == 200 else up(in_features * out_features, 256))
    assert counts["barriers"] == blocks * tiles
    assert counts["copies"] == blocks * tiles * K_TILE * sum(tile) // 8
    warps = (1, 4) if tile[0] < tile[1] else (4, 1)
    assert counts["matrix_loads"] == blocks * tiles * K_TILE // PIECE * loads_of(*tile, warps)
    assert counts["conflicts"] == counts["exchanges"] == counts["atomics"] == 0
    assert counts["multiply_adds"] == out_blocks * tile[0] * in_blocks * tile[1] * tiles * K_TILE
    assert counts["copied_bytes"] == 2 * rows * (in_blocks * out_features + out_blocks * in_features)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "input_grad"])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_the_adapter_reads_weights_once_for_a_block_and_the_residual_beside(tile: AdapterTile, backward):
    rows, features, bottleneck = 200, 352, tile.hidden - 32
    down, upper = layer(rows, features, bottleneck, torch.bfloat16), layer(rows, bottleneck, features, torch.bfloat16)
    weights = down.weight, down.packed, upper.weight, upper.packed
    if backward:
        counts = executed(lambda: adapter.input_grad(down.x, down.dy, *weights, "relu", True, tile))
    else:
        counts = executed(lambda: adapter.forward(down.x, *weights, None, None, "relu", tile))
    blocks = up(rows, tile.rows)
    gates = by_words(bottleneck, features) + by_words(features, bottleneck)
    assert (counts["launches"], counts["blocks"]) == (1, blocks)
    assert counts["multiply_adds"] == 2 * blocks * tile.rows * tile.hidden * up(features, K_TILE) * K_TILE
    # Rows are read for the product and, from the cache, for the residual.
    assert counts["copied_bytes"] == 2 * (2 * rows * features) + blocks * (2 * (2 * bottleneck * features) + gates)
    tiles = up(features, K_TILE)  # of the first product's depth, and of the second's features
    first, (second_m, second_n), stages = ADAPTER_WARPS[tile.name]
    assert counts["copies"] == blocks * 2 * tiles * (
        (tile.rows + tile.hidden) * K_TILE // 8 + tile.hidden * K_TILE // 32
    )
    # Hidden units are loaded once; the residual takes the way back of the result, 16 x 16 at a time.
    loads = tiles * K_TILE // PIECE * loads_of(tile.hidden, tile.rows, first)
    loads += tile.hidden // PIECE * (second_m * tile.rows // PIECE + tiles * second_n * K_TILE // PIECE)
    loads += tiles * K_TILE // PIECE * tile.rows // PIECE
    assert counts["matrix_loads"] == blocks * loads
    handed = up(tile.rows, 64 if tile.rows == 128 else 32)  # parts in which the sums of hidden units change hands
    assert counts["barriers"] == blocks * (stages - 1 + tiles + 1 + 2 * handed + 2 * tiles)
    assert counts["conflicts"] == counts["exchanges"] == counts["atomics"] == 0


def test_one_block_moves_and_computes_what_explain_says():
    rows, in_features, out_features = 128, 256, 128
    one = layer(rows, in_features, out_features, torch.bfloat16)
    counts = executed(lambda: linear.packed_linear(one.x, one.weight, one.packed, None, WIDE, False))
    told = tss_kernels.explain("packed_linear", one.x, one.weight, one.packed)
    assert counts["blocks"] == 1
    assert counts["copied_bytes"] + 2 * rows * out_features == told.bytes
    assert 2 * counts["multiply_adds"] == told.flops


@pytest.mark.parametrize(("count", "dtypes"), [(48, 1), (48, 2), (400, 1), (400, 2)])
@pytest.mark.parametrize("on_device", [False, True])
def test_adamw_is_one_launch_for_all_tensors_of_a_kind(count, dtypes, on_device):
    """And, where its number is read on the device, one before it with a thread for each tensor."""
    shapes = [(3, 8 + i % 2000) for i in range(count)]
    kinds = [torch.bfloat16 if dtypes == 2 and i % 2 else torch.float32 for i in range(count)]
    lists = [[torch.zeros(shape, dtype=kind) for shape, kind in zip(shapes, kinds, strict=True)] for _ in range(5)]
    numbers = {"step": torch.tensor(1.0), "lr": torch.tensor(1e-3)} if on_device else {"step": 1, "lr": 1e-3}
    counts = executed(lambda: tss_kernels.soft_masked_adamw_(*lists, **numbers, **HYPER))
    made = dtypes * up(count // dtypes, 32) if on_device else 0
    assert counts["launches"] == dtypes * (2 if on_device else 1)
    assert counts["blocks"] == sum(up(rows * columns, 1024) for rows, columns in shapes) + made
    assert counts["barriers"] == counts["exchanges"] == counts["atomics"] == 0


def moved(call) -> tuple[int, int]:
    """Bytes of global memory that a call reads and writes."""
    counts = executed(call)
    return counts["read_bytes"], counts["written_bytes"]


SHAPES = [(64, 48), (33, 21), (3, 1024)]


@pytest.mark.parametrize("importance", [True, False])
def test_a_step_moves_each_number_once_as_explain_says(traced, importance):
    lists = [[torch.zeros(shape) for shape in SHAPES] for _ in range(4)]
    names = dict(zip(("params", "grads", "exp_avgs", "exp_avg_sqs"), lists, strict=True))
    options = {"importances": [torch.zeros(shape) if importance else None for shape in SHAPES], "step": 1, "lr": 1e-3}
    read, written = moved(lambda: tss_kernels.soft_masked_adamw_(**names, **options, **HYPER))
    scores = sum(rows * columns for rows, columns in SHAPES)
    assert read == scores * (20 if importance else 16)
    assert written == scores * 12
    assert read + written == tss_kernels.explain("soft_masked_adamw_", **names, **options, **HYPER).bytes
    # Read on the device, a number and the rate make three others, which every thread reads.
    options |= {"step": torch.tensor(1.0), "lr": torch.tensor(1e-3)}
    more = moved(lambda: tss_kernels.soft_masked_adamw_(**names, **options, **HYPER))
    threads = 256 * sum(up(rows * columns, 1024) for rows, columns in SHAPES)
    assert more == (read + 8 * len(SHAPES) + 12 * threads, written + 12 * len(SHAPES))


def test_gates_are_packed_by_one_thread_for_a_byte():
    scores = torch.zeros(72, 352)
    packed = tss_kernels.pack_gates(scores)
    for call, blocks in (
        (lambda: tss_kernels.pack_gates(scores), 13),
        (lambda: tss_kernels.unpack_gates(packed, 352), 13),
        (lambda: gates.pack_gates_pair(scores, scores.T.contiguous(), 0.0), 25),
        (lambda: linear.masked_weight(scores, packed, scores), 13),
        (lambda: linear.masked_weight(scores, packed), 13),
    ):
        counts = {name: count for name, count in executed(call).items() if not name.endswith("_bytes")}
        assert (counts.pop("launches"), counts.pop("blocks")) == (1, blocks)
        assert set(counts.values()) == {0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gates_move_each_number_once_as_explain_says(traced, shape, dtype):
    rows, columns = shape
    scores = torch.zeros(shape, dtype=dtype)
    count, row_bytes = rows * columns, up(columns, 8)
    packed = torch.full((rows, row_bytes), 255, dtype=torch.uint8)
    read, written = moved(lambda: tss_kernels.pack_gates(scores))
    assert (read, written) == (count * scores.itemsize, packed.numel())
    assert read + written == tss_kernels.explain("pack_gates", scores).bytes
    read, written = moved(lambda: tss_kernels.unpack_gates(packed, columns))
    assert (read, written) == (packed.numel(), count)
    assert read + written == tss_kernels.explain("unpack_gates", packed, columns).bytes
    # W is read where gates are on, by eights where rows are whole bytes; scores are read once and packed on the way.
    by_scores = moved(lambda: linear.masked_weight(scores, packed, torch.zeros(shape)))
    assert by_scores == (count * (4 + scores.itemsize), count * scores.itemsize + packed.numel())
    by_gates = moved(lambda: linear.masked_weight(scores, torch.full_like(packed, 255)))
    assert by_gates == (packed.numel() + count * scores.itemsize, count * scores.itemsize)


@pytest.mark.parametrize(("per", "chunks"), [("row", 1), ("tensor", 2)])
def test_importance_is_made_in_two_passes_over_raw(traced, per, chunks):
    raw, total = torch.zeros(4, 1000), torch.zeros(4, 1000)
    groups = 4 if per == "row" else 1
    # Every thread reads its group's first element, in each kernel; chunks hand two numbers on, the mean is read twice.
    blocks, passes = groups * chunks, 1 if chunks == 1 else 2
    beside = 4 * 256 * blocks * passes
    handed = 0 if chunks == 1 else 8 * blocks
    counts = executed(lambda: tss_kernels.normalize_importance(raw, per=per))
    read, written = counts["read_bytes"], counts["written_bytes"]
    assert (read, written) == (2 * 4 * raw.numel() + beside + 3 * handed * chunks, 4 * raw.numel() + 2 * handed)
    # Two sums in each, for which a block waits twice and one warp exchanges five times.
    assert (counts["launches"], counts["blocks"]) == (passes, passes * blocks)
    assert (counts["barriers"], counts["exchanges"]) == (passes * blocks * 4, passes * blocks * 10)
    more, _ = moved(lambda: tss_kernels.update_importance_(total, raw, per=per))
    assert more == read + 4 * raw.numel()
    total.fill_(1)
    assert moved(lambda: tss_kernels.accumulate_importance_(total, raw)) == (2 * 4 * raw.numel(), 0)  # nothing grew


@pytest.mark.parametrize(("rows", "forward", "backward"), [(20, 1, 2), (200, 2, 2), (600, 2, 3)])
def test_launches_of_a_layer(rows, forward, backward):
    """Forward: scores within the product for few rows, packed before it for many. Backward: dX, and dS with its sum."""
    one = layer(rows, 352, 72, torch.bfloat16)
    operands = one.x.requires_grad_(), one.weight, one.scores.requires_grad_()
    assert executed(lambda: tss_kernels.gated_linear(*operands))["launches"] == forward
    y = tss_kernels.gated_linear(*operands)
    assert executed(lambda: y.sum().backward())["launches"] == backward


def test_launches_of_an_adapter():
    """Both layers' gates in one, and the adapter."""
    down, upper = layer(200, 352, 64, torch.bfloat16), layer(200, 64, 352, torch.bfloat16)
    operands = down.x, down.weight, down.scores, upper.weight, upper.scores
    assert executed(lambda: tss_kernels.gated_adapter(*operands))["launches"] == 2


def test_threads_in_the_other_order_execute_the_same(monkeypatch):
    one = layer(33, 64, 136, torch.bfloat16)
    forward = executed(lambda: linear.packed_linear(one.x, one.weight, one.packed, None, WIDE, False))
    monkeypatch.setenv("TSS_EMULATED_ORDER", "reverse")
    assert executed(lambda: linear.packed_linear(one.x, one.weight, one.packed, None, WIDE, False)) == forward


def test_counts_start_again_with_every_call():
    one = layer(33, 64, 136, torch.bfloat16)
    executed(lambda: linear.packed_linear(one.x, one.weight, one.packed, None, WIDE, False))
    assert set(executed(lambda: None).values()) == {0}
