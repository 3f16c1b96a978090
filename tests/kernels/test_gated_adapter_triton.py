"""The Triton kernels of the adapter in every tile, and what the host functions leave to two products."""

from __future__ import annotations

import mmap

import pytest
import torch

pytest.importorskip("triton")

import tss_kernels
from tests.kernels.gated_adapter_cases import check, draw, run
from tss_kernels.gated_adapter import reference, triton
from tss_kernels.testing import poisoned_outputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_outputs():
        yield


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bottleneck", [24, 72])
@pytest.mark.parametrize("tile", [0, 1, 2])
def test_every_tile(tile, bottleneck, dtype, monkeypatch):
    tiles = triton.NARROW if bottleneck == 24 else triton.WIDE
    if tile == len(tiles):
        pytest.skip("there are two wide tiles")
    monkeypatch.setattr(triton, "NARROW" if bottleneck == 24 else "WIDE", tiles[tile : tile + 1])
    assert triton.tile_for(dtype, dtype, 130, 80, bottleneck, True)[0] == tiles[tile]
    tensors = draw(130, 80, bottleneck, dtype, DEVICE)
    check(run(tensors, "triton", "gelu"), tensors, "gelu", 0.1)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize(("rows", "d", "bottleneck"), [(9, 16, 130), (520, 9, 5)])
def test_two_products_where_one_kernel_does_not_pay(rows, d, bottleneck, activation):
    assert triton.tile_for(torch.bfloat16, torch.bfloat16, rows, d, bottleneck, d % 16 == 0)[0] is None
    tensors = draw(rows, d, bottleneck, torch.bfloat16, DEVICE)
    check(run(tensors, "triton", activation), tensors, activation, 0.1)


def test_without_input_gradient():
    tensors = draw(9, 16, 8, torch.bfloat16, DEVICE)
    weights = [tensors["down_weight"], None, tensors["up_weight"], None]
    weights[1], weights[3] = (tss_kernels.pack_gates(tensors[f"{layer}_scores"]) for layer in ("down", "up"))
    hidden = tensors["x"][:, :8]
    dx, d_hidden = triton.input_grad(tensors["dy"], hidden, *weights, "silu", True)
    nothing, alone = triton.input_grad(tensors["dy"], hidden, *weights, "silu", False)
    assert dx.shape == (9, 16)
    assert nothing.shape == (0, 16)
    assert torch.equal(alone, d_hidden)


@pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter wraps 32-bit offsets like a GPU, without the memory")
@pytest.mark.parametrize("transposed", [False, True])
def test_offsets_beyond_31_bits(transposed):
    stride, rows, width = 2**30 + 16, 4, 16
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    before = 2**31  # elements of 0, which an offset that wraps to a negative one would find
    room = mmap.mmap(-1, (before + (rows - 1) * stride + width) * 2, flags=flags)
    far = torch.frombuffer(room, dtype=torch.float16).as_strided((rows, width), (stride, 1), before)
    far = far.t() if transposed else far
    tensors = draw(*far.shape, 8, torch.float16, "cpu")
    weights = [tensors["down_weight"], None, tensors["up_weight"], None]
    weights[1], weights[3] = (tss_kernels.pack_gates(tensors[f"{layer}_scores"]) for layer in ("down", "up"))
    y, hidden = triton.forward(tensors["x"], *weights, None, None, "relu")
    gradients = triton.input_grad(tensors["x"], hidden, *weights, "relu", True)
    far.copy_(tensors["x"])
    again = (
        *triton.forward(far, *weights, None, None, "relu"),
        *triton.input_grad(far, hidden, *weights, "relu", True),
    )
    assert all(torch.equal(one, two) for one, two in zip((y, hidden, *gradients), again, strict=True))


def test_hyperbolic_tangent_is_exact_to_float32():
    """Through an adapter that only adds tanh of x to x: small values too, where 1 - 2 / (e^2x + 1) has no digits."""
    x = torch.cat([torch.logspace(-20, 1.3, 200), torch.tensor([0.0, 0.625, 80.0, float("inf")])])[:, None]
    x = torch.cat([x, -x]).to(DEVICE)
    one, on = torch.ones(1, 1, device=DEVICE), torch.ones(1, 1, dtype=torch.uint8, device=DEVICE)
    _, hidden = triton.forward(x, one, on, one, on, None, None, "tanh")
    _, pytorch = reference.forward(x, one, on, one, on, None, None, "tanh")
    exact = torch.tanh(x.double())
    error, own = (((value.double() - exact) / exact).nan_to_num().abs().max() for value in (hidden, pytorch))
    assert error <= 2 * max(own, torch.finfo(torch.float32).eps)
