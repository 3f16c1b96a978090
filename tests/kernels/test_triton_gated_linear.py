"""The Triton kernels of the gated linear map against float64, in the interpreter or on a GPU."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from tss_kernels.backends import counts, tile_choice
from tss_kernels.backends.tables import TABLES, table_of
from tss_kernels.gated_linear import triton as linear
from tss_kernels.gated_linear import triton_tiles as tiles
from tss_kernels.gates.triton import pack_gates

TABLE = TABLES["sm_90"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# rows, in, out: single elements, both sides of a tile's edge, padding bits, and empty dimensions
SHAPES = [
    (1, 1, 1),
    (31, 33, 17),
    (63, 64, 64),
    (70, 100, 130),
    (33, 129, 65),
    (5, 7, 3),
    (0, 9, 3),
    (5, 0, 3),
    (5, 3, 0),
]


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """Every `torch.empty` is filled with NaN (integers with their maximum), so an element never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def inputs(
    rows: int, in_features: int, out_features: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    made = {
        "x": normal(rows, in_features).to(dtype),
        "dy": normal(rows, out_features).to(dtype),
        "weight": normal(out_features, in_features).to(dtype),
        "bias": normal(out_features).to(dtype),
        "scores": normal(out_features, in_features),
        "importance": torch.rand(out_features, in_features, generator=generator),
    }
    return {name: tensor.to(DEVICE) for name, tensor in made.items()}


def assert_close(actual: torch.Tensor, pytorch: torch.Tensor, exact: torch.Tensor) -> None:
    """At most twice PyTorch's own error, where one rounding of the largest value counts as PyTorch's at least."""
    assert actual.shape == exact.shape
    if exact.numel() == 0:
        return
    own = (pytorch.double() - exact).abs().max().item()
    rounding = torch.finfo(actual.dtype).eps / 2 * exact.abs().max().item()
    assert (actual.double() - exact).abs().max().item() <= 2 * max(own, rounding)


def check(tensors: dict[str, torch.Tensor], threshold: float = 0.1, importance: bool = True, bias: bool = True,
          strategies: tuple = ("fused",)) -> None:  # fmt: skip
    """All products against the same formulas in float64 and in PyTorch in the same dtype."""
    x, dy, weight, scores = (tensors[name] for name in ("x", "dy", "weight", "scores"))
    b = tensors["bias"] if bias else torch.zeros_like(tensors["bias"])
    keep = 1 - tensors["importance"].double() if importance else torch.ones_like(scores).double()
    gate = scores >= threshold
    masked = torch.where(gate, weight, 0)
    bits = torch.from_numpy(np.packbits(gate.cpu().numpy(), axis=1, bitorder="little"))

    for strategy in strategies:
        y, packed = linear.forward(x, weight, scores, b if bias else None, threshold, strategy)
        assert y.dtype == x.dtype
        assert_close(y, torch.nn.functional.linear(x, masked, b), x.double() @ masked.double().T + b.double())
        assert packed.dtype == torch.uint8
        assert torch.equal(packed.cpu(), bits)
        assert torch.equal(linear.packed_linear(x, weight, packed, b if bias else None, strategy), y)

        dx = linear.input_grad(dy, weight, packed, strategy)
        assert dx.dtype == dy.dtype
        assert_close(dx, dy @ masked, dy.double() @ masked.double())

        ds = linear.scores_grad(dy, x, weight, tensors["importance"] if importance else None, strategy)
        assert ds.dtype == torch.float32
        own = (dy.float().T @ x.float()) * weight.float() * keep.float()
        assert_close(ds, own, (dy.double().T @ x.double()) * weight.double() * keep)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape, dtype):
    check(inputs(*shape, dtype), strategies=("fused", "materialise"))


def test_without_bias_and_importance():
    check(inputs(9, 40, 24, torch.float32), bias=False, importance=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_row_ranges_are_summed(dtype):
    tensors = inputs(1100, 16, 5, dtype)
    _, ranges = tiles.scores_grad_tile(TABLE, dtype, 1100, 16, 5, False)
    assert ranges > 1
    check(tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", range(3))
def test_every_tile(number, dtype, monkeypatch):
    tile = counts.TRITON_NARROW[number]
    monkeypatch.setattr(tile_choice, "triton_product", lambda *_: tile)
    if dtype != torch.float32:
        assert tiles.forward_tile(TABLE, dtype, 130, 144, 80, True).rows == tile.rows
    check(inputs(130, 144, 80, dtype))
    check(inputs(130, 48, 16, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("number", "count"), [(0, 4), (1, 2), (2, 1)])
def test_short_sums(number, count, dtype, monkeypatch):
    """Few features are summed: one program takes several tiles of the result, the last of them fewer."""
    tile = counts.TRITON_SHORT[number]
    monkeypatch.setattr(tile_choice, "triton_short", lambda *_: (tile, count))
    monkeypatch.setattr(linear, "COMPARING_TILES", 0)
    taken, of_program = tiles.short_tile(TABLE, dtype, 130, 32, 576)
    assert (taken.rows, of_program) == (tile.rows, count)
    check(inputs(130, 32, 576, dtype))
    check(inputs(130, 576, 16, dtype), bias=False)


@pytest.mark.parametrize("rows", [128, 129])
def test_scores_are_compared_inside_for_few_tiles_of_rows_and_once_before_for_many(rows, monkeypatch):
    packed = []
    monkeypatch.setattr(linear, "pack_gates", lambda *given: packed.append(pack_gates(*given)))
    tensors = inputs(rows, 80, 20, torch.bfloat16)
    check(tensors)
    assert len(packed) == (rows > 128)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_vendors_score_gradient_is_not_rounded(dtype):
    """3,000 times 1 and 2 ** -12 fit no 16-bit sum, and the result none of the dtypes."""
    ones = torch.ones(3000, 1, dtype=dtype, device=DEVICE)
    x = torch.full_like(ones, 2.0**-12)
    x[0] = 1
    ds = linear.scores_grad(ones, x, ones[:1], None, "materialise")
    assert ds.item() == 1 + 2999 * 2.0**-12


@pytest.mark.parametrize("name", [name for name in TABLES if name != "sm_90"])
def test_tiles_of_other_architectures(name, monkeypatch):
    monkeypatch.setattr(linear, "table_for", lambda device: TABLES[name])
    for dtype in (torch.float32, torch.bfloat16):
        check(inputs(70, 144, 80, dtype), strategies=("fused", None))


def test_the_strategy_follows_the_table():
    def strategy(rows: int, in_features: int, out_features: int, dtype: torch.dtype, aligned: bool = True) -> str:
        return tiles.strategy_for(TABLE, "forward", dtype, rows, in_features, out_features, aligned)[0]

    assert strategy(65536, 1024, 64, torch.bfloat16) == "fused"
    assert strategy(2048, 1024, 1024, torch.bfloat16) == "fused"
    assert strategy(2049, 1024, 1024, torch.bfloat16) == "materialise"
    assert strategy(513, 1024, 64, torch.float32) == "materialise"
    assert strategy(513, 100, 50, torch.bfloat16, aligned=False) == "materialise"
    assert tiles.strategy_for(TABLE, "scores_grad", torch.bfloat16, 65536, 1024, 64, True)[0] == "fused"
    assert tiles.strategy_for(TABLE, "scores_grad", torch.bfloat16, 1025, 1024, 1024, True)[0] == "materialise"
    for table in TABLES.values():
        assert {key[0] for key in table.crossovers} == {"forward", "input_grad", "scores_grad"}
        assert len(table.crossovers) == 24
        assert all(crossover.basis.split(":")[0] for crossover in table.crossovers.values())


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 9), "sm_86"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_90"),
        ((12, 0), "sm_86"),
    ],
)
def test_an_architecture_takes_the_table_whose_tiles_fit(capability, name):
    assert table_of(*capability).name == name


LAYOUTS = {
    "transposed": lambda tensor: tensor.t().contiguous().t(),
    "every second column": lambda tensor: tensor.repeat_interleave(2, dim=1)[:, ::2],
    "every second row": lambda tensor: tensor.repeat_interleave(2, dim=0)[::2],
    "starts off a 16-byte boundary": lambda tensor: torch.cat([tensor[:, :1], tensor], dim=1)[:, 1:],
    "one row repeated": lambda tensor: tensor[:1].expand_as(tensor),
    "one value repeated": lambda tensor: tensor[:1, :1].expand_as(tensor),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(layout, dtype):
    tensors = inputs(37, 48, 32, dtype)
    for name in ("x", "dy"):
        tensors[name] = LAYOUTS[layout](tensors[name])
    check(tensors)
    for name in ("weight", "scores", "importance"):
        tensors[name] = LAYOUTS["transposed"](tensors[name])
    check(tensors)


@pytest.mark.parametrize("threshold", [0.0, 0.7, -0.3, float("inf"), float("-inf"), float("nan")])
def test_scores_at_the_threshold_and_beyond(threshold):
    at = torch.tensor(threshold)
    neighbours = [torch.nextafter(at, torch.tensor(way)) for way in (float("inf"), float("-inf"))]
    special = torch.tensor([threshold, *neighbours, 0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45])
    tensors = inputs(6, 21, 19, torch.float32)
    choice = torch.randint(len(special), (19, 21), generator=torch.Generator().manual_seed(1))
    tensors["scores"] = special[choice].to(DEVICE)
    check(tensors, threshold)


@pytest.mark.parametrize("on", [True, False])
def test_all_gates_alike(on):
    tensors = inputs(6, 21, 19, torch.float16)
    tensors["scores"].fill_(1.0 if on else -1.0)
    check(tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_off_entries_add_nothing_even_where_the_weight_is_not_finite(dtype):
    tensors = inputs(20, 70, 40, dtype)
    x, dy, weight, scores = (tensors[name] for name in ("x", "dy", "weight", "scores"))
    clean, packed = linear.forward(x, weight, scores, None, 0.0)
    clean_dx = linear.input_grad(dy, weight, packed)
    off = (scores < 0).nonzero()
    for number, value in enumerate((float("nan"), float("inf"), float("-inf"))):
        weight[off[number::3, 0], off[number::3, 1]] = value
    y, packed = linear.forward(x, weight, scores, None, 0.0)
    assert torch.equal(y, clean)
    assert torch.equal(linear.input_grad(dy, weight, packed), clean_dx)


def test_gates_of_a_sliced_bank():
    tensors = inputs(6, 40, 8, torch.float32)
    _, packed = linear.forward(tensors["x"], tensors["weight"], tensors["scores"], None, 0.0)
    expected = linear.input_grad(tensors["dy"], tensors["weight"], packed)
    bank = torch.cat([torch.full((1,), 255, dtype=torch.uint8, device=DEVICE), packed.flatten()])
    sliced = bank[1:].view_as(packed)
    assert torch.equal(linear.input_grad(tensors["dy"], tensors["weight"], sliced), expected)


def test_equal_bits_in_twenty_runs(monkeypatch):
    monkeypatch.setattr(tiles, "MIN_SPLIT_ROWS", 16)
    tensors = inputs(67, 24, 9, torch.float32)
    assert tiles.scores_grad_tile(TABLE, torch.float32, 67, 24, 9, False)[1] == 4
    x, dy, weight, scores = (tensors[name] for name in ("x", "dy", "weight", "scores"))

    def run() -> list[torch.Tensor]:
        y, packed = linear.forward(x, weight, scores, tensors["bias"], 0.0)
        return [y, packed, linear.input_grad(dy, weight, packed), linear.scores_grad(dy, x, weight, None)]

    first = run()
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter wraps 32-bit offsets like a GPU, without the memory")
def test_row_offsets_beyond_31_bits():
    stride, rows, width = 2**30 + 16, 4, 8
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    room = mmap.mmap(-1, ((rows - 1) * stride + width) * 2, flags=flags)
    far = torch.frombuffer(room, dtype=torch.float16).as_strided((rows, width), (stride, 1))
    tensors = inputs(rows, width, width, torch.float16)
    y, packed = linear.forward(tensors["x"], tensors["weight"], tensors["scores"], None, 0.0)
    dx = linear.input_grad(tensors["x"], tensors["weight"], packed)
    ds = linear.scores_grad(tensors["x"], tensors["x"], tensors["weight"], None)
    far.copy_(tensors["x"])
    assert torch.equal(linear.forward(far, tensors["weight"], tensors["scores"], None, 0.0)[0], y)
    assert torch.equal(linear.input_grad(far, tensors["weight"], packed), dx)
    assert torch.equal(linear.scores_grad(far, far, tensors["weight"], None), ds)
    columns = far.t()  # the same distance between columns
    assert torch.equal(columns, tensors["x"].t())
    tensors = inputs(width, rows, 5, torch.float16)
    expected, _ = linear.forward(columns.contiguous(), tensors["weight"], tensors["scores"], None, 0.0)
    assert torch.equal(linear.forward(columns, tensors["weight"], tensors["scores"], None, 0.0)[0], expected)
