"""The CUDA C++ products tile by tile, their threads in two orders, and the shapes that choose between them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tss_kernels.backends.tables import cuda as configs
from tss_kernels.backends.tables.cuda import GENERAL, TILINGS
from tss_kernels.gates import reference as gates
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout, poisoned_outputs

HALVES = [torch.float16, torch.bfloat16]
# in, out, rows: a tile and less, more than one tile in every direction, a ragged end in every direction; the last has
# tiles that lie inside all matrices, beside others that do not
SHAPES = [(64, 64, 32), (8, 3, 1), (136, 130, 131), (200, 65, 129), (72, 200, 40), (160, 160, 130)]
pytestmark = pytest.mark.usefixtures("cuda_kernels")


@pytest.fixture
def products():
    """The backend's file."""
    from tss_kernels.gated_linear import cuda

    return cuda


def draw(in_features: int, out_features: int, rows: int, dtype: torch.dtype, device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(in_features + 7 * out_features + 77 * rows)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    drawn = {
        "x": normal(rows, in_features).to(dtype),
        "dy": normal(rows, out_features).to(dtype),
        "weight": normal(out_features, in_features).to(dtype),
        "bias": normal(out_features).to(dtype),
        "scores": normal(out_features, in_features),
        "importance": torch.rand(out_features, in_features, generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in drawn.items()}


def check_products(products, t: dict[str, torch.Tensor], tiling, gate: torch.Tensor, ranges: int = 1) -> None:
    """Forward and input gradient on one tiling, as exact as PyTorch's own products of the masked weight."""
    packed, masked = gates.pack(gate), gates.masked(t["weight"], gate)
    with poisoned_outputs():
        y = products.packed_linear(t["x"], t["weight"], packed, t["bias"], tiling, False, ranges)
        dx = products.input_grad(t["dy"], t["weight"], packed, tiling, False, ranges)
    exact = torch.nn.functional.linear(t["x"].double(), masked.double(), t["bias"].double())
    assert_as_exact_as_pytorch(y, torch.nn.functional.linear(t["x"], masked, t["bias"]), exact)
    assert_as_exact_as_pytorch(dx, t["dy"] @ masked, t["dy"].double() @ masked.double())


def runs(tiling, device) -> bool:
    return not tiling.name.endswith("groups") or configs.has_warpgroups(device)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: tiling.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tiling(products, tiling, shape, dtype, device):
    if not runs(tiling, device):
        pytest.skip("the device has no warpgroup instructions")
    t = draw(*shape, dtype, device)
    check_products(products, t, tiling, t["scores"] >= 0.1)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: tiling.name)
@pytest.mark.parametrize("ranges", [2, 4])
def test_sums_in_ranges(products, tiling, ranges, dtype, device):
    """Five and seven tiles of what is summed, the last of them ragged: ranges of one tile and of more."""
    if not runs(tiling, device):
        pytest.skip("the device has no warpgroup instructions")
    t = draw(312, 440, 40, dtype, device)
    check_products(products, t, tiling, t["scores"] >= 0.1, ranges)
    packed = gates.pack(t["scores"] >= 0.1)
    call = t["x"], t["weight"], packed, t["bias"], tiling, False, ranges
    first = products.packed_linear(*call)
    assert all(torch.equal(products.packed_linear(*call), first) for _ in range(3))


@pytest.mark.parametrize("rows", [1, 100, 128, 200])
def test_what_the_table_cuts_has_the_bits_of_packed_gates(products, rows, device):
    """Deep products of few rows are cut into ranges, alike whether scores are compared inside or gates are packed."""
    t = draw(2048, 24, rows, torch.bfloat16, device)
    tiling, ranges = configs.tiling_for(torch.bfloat16, rows, 2048, 24, True, configs.has_warpgroups(device))
    assert ranges > 1
    with poisoned_outputs():
        y, packed = products.forward(t["x"], t["weight"], t["scores"], t["bias"], 0.1)
    gate = t["scores"] >= 0.1
    assert torch.equal(packed, gates.pack(gate))
    assert torch.equal(products.packed_linear(t["x"], t["weight"], packed, t["bias"]), y)
    assert torch.equal(products.packed_linear(t["x"], t["weight"], packed, t["bias"], tiling, False, ranges), y)
    masked = gates.masked(t["weight"], gate)
    exact = torch.nn.functional.linear(t["x"].double(), masked.double(), t["bias"].double())
    assert_as_exact_as_pytorch(y, torch.nn.functional.linear(t["x"], masked, t["bias"]), exact)


@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: tiling.name)
def test_an_off_weight_adds_nothing_whatever_it_is(products, tiling, device):
    if not runs(tiling, device):
        pytest.skip("the device has no warpgroup instructions")
    t = draw(72, 130, 40, torch.bfloat16, device)
    gate = t["scores"] >= 0.1
    wild = torch.tensor([float("inf"), float("nan"), -float("inf")], device=device).repeat(72 * 130 // 3)
    poisoned = t | {"weight": torch.where(gate, t["weight"], wild.view(130, 72).to(torch.bfloat16))}
    packed = gates.pack(gate)
    for x, name in (("x", "packed_linear"), ("dy", "input_grad")):
        extra = (t["bias"],) if name == "packed_linear" else ()
        clean = getattr(products, name)(t[x], t["weight"], packed, *extra, tiling, False)
        assert torch.equal(getattr(products, name)(t[x], poisoned["weight"], packed, *extra, tiling, False), clean)


def everything(products, t: dict[str, torch.Tensor], device) -> list[torch.Tensor]:
    packed = gates.pack(t["scores"] >= 0.1)
    results = [*products.forward(t["x"][:5], t["weight"], t["scores"], t["bias"], 0.1)]
    results.append(products.scores_grad(t["dy"], t["x"], t["weight"], t["importance"]))
    for tiling in TILINGS:
        if runs(tiling, device):
            results.append(products.packed_linear(t["x"], t["weight"], packed, t["bias"], tiling, False))
            results.append(products.input_grad(t["dy"], t["weight"], packed, tiling, False))
            results.append(products.packed_linear(t["x"], t["weight"], packed, t["bias"], tiling, False, 2))
    return results


@pytest.mark.parametrize("aligned", [True, False])
def test_the_order_of_threads_between_barriers_changes_nothing(products, aligned, device, monkeypatch):
    """A race, such as a missing barrier, would show as other bits, or as NaN from shared memory that was not ready."""
    shape = (136, 130, 600) if aligned else (133, 67, 600)
    t = draw(*shape, torch.bfloat16, device)
    if device.type == "cuda":
        pytest.skip("a GPU's threads have no order to choose; compute-sanitizer looks for races there")
    monkeypatch.setenv("TSS_EMULATED_ORDER", "forward")
    forward = everything(products, t, device)
    monkeypatch.setenv("TSS_EMULATED_ORDER", "reverse")
    for one, other in zip(forward, everything(products, t, device), strict=True):
        assert not one.isnan().any()
        assert torch.equal(one, other)


def float32_product(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """dyᵀ x as PyTorch computes it in float32 on a GPU; a CPU's sums in many parts err less than a GPU's, which add one
    row after the other."""
    if x.device.type == "cuda":
        return dy.float().T @ x.float()
    sums = torch.zeros(dy.shape[1], x.shape[1])
    for one, other in zip(dy.double(), x.double(), strict=True):
        sums = torch.addr(sums.double(), one, other).float()  # one rounding, as of a fused multiply-add
    return sums


def check_score_gradient(grad: torch.Tensor, t: dict[str, torch.Tensor]) -> None:
    wide = {name: t[name].double() for name in ("dy", "x", "weight", "importance")}
    exact = (wide["dy"].T @ wide["x"]) * wide["weight"] * (1 - wide["importance"])
    pytorch = float32_product(t["dy"], t["x"]) * t["weight"].float() * (1 - t["importance"])
    assert_as_exact_as_pytorch(grad, pytorch, exact)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("rows", [1, 256, 600, 2100])
def test_score_gradient_in_ranges_of_rows(products, dtype, rows, device):
    t = draw(40, 24, rows, dtype, device)
    with poisoned_outputs():
        grad = products.scores_grad(t["dy"], t["x"], t["weight"], t["importance"])
    check_score_gradient(grad, t)


@pytest.mark.parametrize("rows", [512, 1024, 7000])
@pytest.mark.parametrize("ranges", [1, 2])
def test_score_gradient_of_many_rows_in_few_ranges(products, rows, ranges, device, monkeypatch):
    """Large weights have blocks enough without ranges; tensor cores cut what they add, which long sums would show."""
    t = draw(40, 24, rows, torch.bfloat16, device)
    module, range_rows = products.kernels(device), -(-rows // ranges // 64) * 64

    class FewRanges:
        scores_grad = staticmethod(module.scores_grad)
        scores_grad_range_rows = staticmethod(lambda *_: range_rows)

    monkeypatch.setattr(products, "kernels", lambda _: FewRanges)
    with poisoned_outputs():
        grad = products.scores_grad(t["dy"], t["x"], t["weight"], t["importance"])
    check_score_gradient(grad, t)


@pytest.mark.parametrize("rows", [0, 1, 100, 200])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_forward_compares_inside_the_product_or_before_it(products, rows, dtype, device):
    t = draw(72, 70, rows, dtype, device)
    t["scores"].view(-1)[:4] = torch.tensor([float("nan"), 0.1, float("inf"), -0.0], device=device)
    gate = t["scores"] >= 0.1
    with poisoned_outputs():
        y, packed = products.forward(t["x"], t["weight"], t["scores"], t["bias"], 0.1)
    masked = gates.masked(t["weight"], gate)
    assert torch.equal(packed, gates.pack(gate))
    exact = torch.nn.functional.linear(t["x"].double(), masked.double(), t["bias"].double())
    assert_as_exact_as_pytorch(y, torch.nn.functional.linear(t["x"], masked, t["bias"]), exact)


def test_where_the_tile_cannot_compare_gates_are_packed_before(products, device, monkeypatch):
    t = draw(72, 70, 40, torch.bfloat16, device)
    inside = products.forward(t["x"], t["weight"], t["scores"], t["bias"], 0.1)
    monkeypatch.setattr(products, "tiling_for", lambda *_: (configs.NARROW, 1))
    y, packed = products.forward(t["x"], t["weight"], t["scores"], t["bias"], 0.1)
    assert torch.equal(packed, inside[1])
    assert torch.equal(packed, gates.pack(t["scores"] >= 0.1))
    assert torch.equal(products.packed_linear(t["x"], t["weight"], packed, t["bias"], configs.NARROW, False), y)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 80), st.integers(1, 40)),
    layout=st.sampled_from(["contiguous", "permuted", "sliced", "expanded"]),
    offset=st.integers(0, 3),
    on=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_size_stride_and_start(shape, layout, offset, on):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from tss_kernels.gated_linear import cuda

    t = draw(*shape, torch.bfloat16, device)
    gate = torch.rand(shape[1], shape[0], generator=torch.Generator().manual_seed(0)).to(device) < on
    for name in ("x", "dy"):
        moved = torch.zeros(t[name].numel() + offset, dtype=torch.bfloat16, device=device)[offset:].view(t[name].shape)
        t[name] = in_layout(moved.copy_(t[name]), layout)
    tiling = None if cuda.is_aligned(t["x"], t["weight"]) and cuda.is_aligned(t["dy"], t["weight"]) else GENERAL
    check_products(cuda, t, tiling, gate)


def test_tilings_by_shape():
    def chosen(rows: int, summed: int, features: int, aligned: bool = True, warpgroups: bool = False) -> str:
        return configs.tiling_for(torch.bfloat16, rows, summed, features, aligned, warpgroups)[0].name

    assert chosen(64, 64, 1024) == "small"
    assert chosen(4096, 1024, 64) == "small"
    assert chosen(8192, 1024, 64, warpgroups=True) == "narrow_groups"
    assert chosen(65536, 1024, 64) == "narrow"
    assert chosen(65536, 64, 1024) == "wide"
    assert chosen(65536, 1024, 64, warpgroups=True) == "narrow_groups"
    assert chosen(65536, 64, 1024, warpgroups=True) == "wide_groups"
    assert chosen(65536, 64, 1024, aligned=False) == "general"
    assert configs.tiling_for(torch.float32, 9, 9, 9, True, True)[0].name == "float32"
