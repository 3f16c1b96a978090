"""The CUDA C++ adapter tile by tile, its threads in two orders, and the shapes that choose between tiles."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.gated_adapter_cases import ACTIVATIONS, draw
from tss_kernels.backends.tables.cuda_adapter import NARROW, TILES, WIDE, tile_for
from tss_kernels.gated_adapter import reference
from tss_kernels.gates import reference as gates
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout, poisoned_outputs

HALVES = [torch.float16, torch.bfloat16]
# rows, d, bottleneck: less than a tile, whole tiles, a ragged end in every direction, rows of 16 bytes and others; the
# last two have tiles that lie inside all matrices, beside others that do not
SHAPES = [
    (1, 8, 1), (33, 70, 17), (130, 136, 64), (64, 64, 128), (33, 72, 65), (130, 9, 128), (0, 64, 64), (130, 160, 64),
    (65, 160, 128),
]  # fmt: skip
WEIGHTS = ("down_weight", "down_packed", "up_weight", "up_packed")
pytestmark = pytest.mark.usefixtures("cuda_kernels")


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_outputs():
        yield


@pytest.fixture
def adapter(device):
    from tss_kernels.gated_adapter import cuda

    return cuda


def inputs(rows: int, d: int, bottleneck: int, dtype: torch.dtype, device, biases: bool = True) -> dict:
    """Operands of both passes, gates packed at 0.1; hidden has values of both signs."""
    t: dict[str, Any] = draw(rows, d, bottleneck, dtype, device)
    for layer in ("down", "up"):
        t[f"{layer}_packed"] = gates.pack(t[f"{layer}_scores"] >= 0.1)
        t[f"{layer}_bias"] = t[f"{layer}_bias"] if biases else None
    t["hidden"] = torch.randn(rows, bottleneck, generator=torch.Generator().manual_seed(3)).tanh().to(device, dtype)
    return t


def both(module, t: dict, activation: str, dtype: torch.dtype | None = None, **options) -> dict[str, torch.Tensor]:
    """What both passes return, in another dtype where one is given."""
    t = {
        name: value.to(dtype) if dtype is not None and value is not None and value.is_floating_point() else value
        for name, value in t.items()
    }
    weights = [t[name] for name in WEIGHTS]
    y, hidden = module.forward(t["x"], *weights, t["down_bias"], t["up_bias"], activation, **options)
    dx, d_hidden = module.input_grad(t["dy"], t["hidden"], *weights, activation, True, **options)
    return {"y": y, "hidden": hidden, "dx": dx, "d_hidden": d_hidden}


def check(adapter, t: dict, activation: str, tile) -> None:
    actual = both(adapter, t, activation, tile=tile)
    own, exact = both(reference, t, activation), both(reference, t, activation, torch.float64)
    for name, value in actual.items():
        assert value.dtype == own[name].dtype, name
        assert_as_exact_as_pytorch(value, own[name], exact[name])


def check_each_product(adapter, t: dict, activation: str, tile) -> None:
    """The same, each product from the values that it was given: on few elements earlier roundings are luck."""
    actual = both(adapter, t, activation, tile=tile)
    own, exact = both(reference, t, activation), both(reference, t, activation, torch.float64)
    for name in ("hidden", "d_hidden"):
        assert_as_exact_as_pytorch(actual[name], own[name], exact[name])
    active = reference.active_hidden(actual["hidden"], activation)
    up, down = (
        gates.masked(weight, gates.unpack_gates(t[f"{layer}_packed"], weight.shape[1]))
        for layer, weight in (("up", t["up_weight"]), ("down", t["down_weight"]))
    )
    second = {"y": (t["x"], active, up, t["up_bias"]), "dx": (t["dy"], actual["d_hidden"], down.t(), None)}
    for name, (residual, units, weight, bias) in second.items():
        wide = torch.nn.functional.linear(units.double(), weight.double(), None if bias is None else bias.double())
        pytorch = residual + torch.nn.functional.linear(units, weight, bias)
        assert_as_exact_as_pytorch(actual[name], pytorch, residual.double() + wide)


def fitting(bottleneck: int) -> list:
    return [tile for tile in TILES if tile.hidden >= bottleneck]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("shape", "tile"), [(shape, tile) for shape in SHAPES for tile in fitting(shape[2])], ids=lambda of: str(of)
)
def test_every_tile(adapter, shape, tile, dtype, device):
    rows, d, bottleneck = shape
    for biases in (True, False):
        check(adapter, inputs(rows, d, bottleneck, dtype, device, biases), "silu" if biases else "relu", tile)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_every_activation(adapter, tile, activation, dtype, device):
    check(adapter, inputs(33, 72, 60, dtype, device), activation, tile)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("d", [72, 70])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_wider_inputs_keep_their_dtype(adapter, tile, d, dtype, device):
    """float32 x and dy, as under autocast: rounded for the products alone."""
    t = inputs(37, d, 17, dtype, device)
    t["x"], t["dy"] = (torch.randn(37, d, generator=torch.Generator().manual_seed(d)).to(device) for _ in range(2))
    check(adapter, t, "gelu", tile)


@pytest.mark.parametrize("wider", [False, True])
@pytest.mark.parametrize("d", [200, 133])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_the_order_of_threads_between_barriers_changes_nothing(adapter, tile, d, wider, device, monkeypatch):
    """A race, such as a missing barrier, would show as other bits, or as NaN from shared memory that was not ready."""
    if device.type == "cuda":
        pytest.skip("a GPU's threads have no order to choose; compute-sanitizer looks for races there")
    t = inputs(140, d, 60, torch.bfloat16, device)
    if wider:
        t["x"], t["dy"] = t["x"].float(), t["dy"].float()
    results = []
    for order in ("forward", "reverse"):
        monkeypatch.setenv("TSS_EMULATED_ORDER", order)
        results.append(both(adapter, t, "gelu", tile=tile))
    for name, value in results[0].items():
        assert not value.isnan().any()
        assert torch.equal(value, results[1][name]), name


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_an_off_weight_adds_nothing_whatever_it_is(adapter, tile, device):
    t = inputs(33, 72, 60, torch.bfloat16, device)
    wild = torch.tensor([float("inf"), float("nan"), -float("inf")], device=device).repeat(72 * 60 // 3)
    poisoned = dict(t)
    for layer in ("down", "up"):
        weight = t[f"{layer}_weight"]
        on = gates.unpack_gates(t[f"{layer}_packed"], weight.shape[1])
        poisoned[f"{layer}_weight"] = torch.where(on, weight, wild.view(weight.shape).to(weight.dtype))
    clean, actual = both(adapter, t, "tanh", tile=tile), both(adapter, poisoned, "tanh", tile=tile)
    for name, value in clean.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_what_is_not_finite_reaches_what_it_reaches_in_pytorch(adapter, tile, activation, bad, device):
    """Units that only fill a tile multiply infinity by 0: they must not spread the NaN that this makes."""
    t = inputs(5, 72, 17, torch.bfloat16, device)
    t |= {name: t[name].abs() for name in ("x", "dy", "down_weight", "up_weight", "hidden")}
    t["x"][1, 3] = t["dy"][1, 3] = bad
    for layer in ("down", "up"):
        t[f"{layer}_packed"] = gates.pack(torch.ones(t[f"{layer}_weight"].shape, dtype=torch.bool, device=device))
    actual, expected = both(adapter, t, activation, tile=tile), both(reference, t, activation)
    for name, value in actual.items():
        torch.testing.assert_close(value[1], torch.full_like(value[1], bad), equal_nan=True)
        assert torch.equal(value.isfinite(), expected[name].isfinite()), name


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_without_input_gradient(adapter, tile, device):
    t = inputs(33, 72, 17, torch.bfloat16, device)
    weights = [t[name] for name in WEIGHTS]
    dx, d_hidden = adapter.input_grad(t["dy"], t["hidden"], *weights, "silu", True, tile)
    nothing, alone = adapter.input_grad(t["dy"], t["hidden"], *weights, "silu", False, tile)
    assert dx.shape == (33, 72)
    assert nothing.shape == (0, 72)
    assert torch.equal(alone, d_hidden)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 140), st.integers(1, 150), st.integers(1, 128)),
    layout=st.sampled_from(["contiguous", "permuted", "sliced", "expanded"]),
    offset=st.integers(0, 3),
    tile=st.sampled_from(TILES),
    activation=st.sampled_from(list(ACTIVATIONS)),
    dtype=st.sampled_from([*HALVES, torch.float32]),
)
def test_any_size_stride_and_start(shape, layout, offset, tile, activation, dtype):
    from tss_kernels.gated_adapter import cuda

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, d, bottleneck = shape
    t = inputs(rows, d, min(bottleneck, tile.hidden), torch.bfloat16 if dtype == torch.float32 else dtype, device)
    for name in ("x", "dy"):
        moved = torch.zeros(t[name].numel() + offset, dtype=dtype, device=device)[offset:].view(rows, d)
        t[name] = in_layout(moved.copy_(t[name]), layout)
    for name in ("down_weight", "up_weight"):
        moved = torch.zeros(t[name].numel() + offset, dtype=t[name].dtype, device=device)[offset:].view(t[name].shape)
        t[name] = moved.copy_(t[name])
    t["hidden"] = in_layout(t["hidden"], layout)
    check_each_product(cuda, t, activation, tile)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="emulated kernels have a GPU's offsets without needing its memory"
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_offsets_beyond_31_bits(adapter, transposed, dtype):
    stride, rows, width, size = 2**30 + 16, 4, 16, dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    before = 2**31  # elements of 0, which an offset that wraps to a negative one would find
    room = mmap.mmap(-1, (before + (rows - 1) * stride + width) * size, flags=flags)
    far = torch.frombuffer(room, dtype=dtype).as_strided((rows, width), (stride, 1), before)
    far = far.t() if transposed else far
    t = inputs(*far.shape, 8, torch.float16, torch.device("cpu"))
    t["x"] = t["dy"] = t["x"].to(dtype)
    near = both(adapter, t, "relu", tile=NARROW[2])
    far.copy_(t["x"])
    for name, value in both(adapter, t | {"x": far, "dy": far}, "relu", tile=NARROW[2]).items():
        assert torch.equal(value, near[name]), name


def test_tiles_by_shape():
    def chosen(rows: int, bottleneck: int, d: int = 1024, dtype=torch.bfloat16, x=None, aligned: bool = True) -> str:
        tile, why = tile_for(x or dtype, dtype, rows, d, bottleneck, aligned)
        return tile.name if tile else why

    assert chosen(65536, 64) == "narrow_128"
    assert chosen(16384, 64) == "narrow_128"
    assert chosen(8192, 17) == "narrow_64"
    assert chosen(64, 64) == "narrow_32"
    assert chosen(65536, 65) == "wide_64"
    assert chosen(64, 128) == "wide_32"
    assert chosen(64, 64, x=torch.float32) == "narrow_32"
    assert chosen(256, 64, aligned=False) == "narrow_32"
    assert "single elements" in chosen(257, 64, aligned=False)
    assert "129 hidden units" in chosen(64, 129)
    assert "narrowed" in chosen(64, 64, x=torch.float64)
    assert "float32" in chosen(64, 64, dtype=torch.float32)
    for empty in ((0, 64, 8), (8, 0, 8), (8, 64, 0)):
        assert "empty" in chosen(*empty)
    assert [tile.number for tile in TILES] == list(range(5))
    assert all(tile.hidden == 128 for tile in WIDE)


def test_configuration_says_tile_and_reason(adapter, device):
    assert "narrow_32 blocks of 32 rows" in adapter.configuration(
        "gated_adapter", device, torch.bfloat16, (64, 1024, 64)
    )
    two = adapter.configuration("gated_adapter", device, torch.float32, (64, 1024, 64))
    assert two.startswith("two packed_linear")


@pytest.mark.parametrize(("rows", "d", "bottleneck"), [(9, 16, 130), (300, 9, 5)])
def test_two_products_where_one_kernel_does_not_pay(adapter, rows, d, bottleneck, device):
    check(adapter, inputs(rows, d, bottleneck, torch.bfloat16, device), "tanh", None)
