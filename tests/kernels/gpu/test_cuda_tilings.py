"""Every tiling of the CUDA C++ products and adapter at BART-Large's sizes: warpgroups run on no emulator's timing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tss_kernels.backends.registry import why_not
from tss_kernels.backends.tables.cuda import GENERAL, TILINGS, Tiling, has_warpgroups
from tss_kernels.backends.tables.cuda_adapter import NARROW, TILES, AdapterTile
from tss_kernels.gates import reference as gates
from tss_kernels.testing import assert_as_exact_as_pytorch, poisoned_outputs

pytestmark = pytest.mark.gpu

# rows, in, out: BART-Large's, and a ragged end in every direction
SHAPES = [(4096, 1024, 64), (4096, 64, 1024), (16384, 1024, 1024), (5001, 1016, 200)]
# Few rows, whose sums are cut into ranges.
DEEP = [(512, 1024, 64), (37, 4096, 64), (2048, 4096, 72)]
HALVES = [torch.bfloat16, torch.float16]
Tensors = dict[str, torch.Tensor]


def needs(tiling: Tiling | None = None) -> None:
    obstacle = why_not("cuda", "gated_linear", torch.device("cuda"), torch.bfloat16)
    if obstacle is not None:
        pytest.skip(obstacle.reason)
    if tiling is not None and tiling.name.endswith("groups") and not has_warpgroups(torch.device("cuda")):
        pytest.skip("the GPU has no warpgroup instructions (they are Hopper's, sm_90)")


def drawn(made, rows: int, inner: int, out: int) -> Tensors:
    gate = made.normal(out, inner) >= 0
    weight = made.normal(out, inner)
    return {
        "x": made.normal(rows, inner), "dy": made.normal(rows, out), "weight": weight, "bias": made.normal(out),
        "packed": gates.pack(gate), "masked": gates.masked(weight, gate),
    }  # fmt: skip


def products(t: Tensors, tiling: Tiling | None, ranges: int = 1) -> list[torch.Tensor]:
    from tss_kernels.gated_linear import cuda

    return [
        cuda.packed_linear(t["x"], t["weight"], t["packed"], t["bias"], tiling, False, ranges),
        cuda.input_grad(t["dy"], t["weight"], t["packed"], tiling, False, ranges),
    ]


def by_formula(t: Tensors, dtype: torch.dtype) -> list[torch.Tensor]:
    x, dy, masked, bias = (t[name].to(dtype) for name in ("x", "dy", "masked", "bias"))
    return [torch.nn.functional.linear(x, masked, bias), dy @ masked]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: tiling.name)
def test_a_product_is_as_exact_as_pytorchs(draw, tiling, shape, dtype):
    needs(tiling)
    if tiling == GENERAL and shape[1] * shape[2] > 2**17:
        pytest.skip("single elements are not loaded at these sizes")
    t = drawn(draw(torch.device("cuda"), 0, dtype), *shape)
    with poisoned_outputs():
        found = products(t, tiling)
    for one, pytorch, exact in zip(found, by_formula(t, dtype), by_formula(t, torch.float64), strict=True):
        assert_as_exact_as_pytorch(one, pytorch, exact)


@pytest.mark.parametrize("shape", DEEP, ids=str)
@pytest.mark.parametrize("tiling", [None, *TILINGS], ids=lambda tiling: tiling.name if tiling else "chosen")
def test_sums_in_ranges_are_as_exact_and_the_same_every_time(draw, tiling, shape):
    needs(tiling)
    t = drawn(draw(torch.device("cuda"), 2), *shape)
    with poisoned_outputs():
        found = products(t, tiling, 4)
    for one, pytorch, exact in zip(found, by_formula(t, torch.bfloat16), by_formula(t, torch.float64), strict=True):
        assert_as_exact_as_pytorch(one, pytorch, exact)
    for _ in range(20):
        assert all(torch.equal(one, other) for one, other in zip(products(t, tiling, 4), found, strict=True))


@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: tiling.name)
def test_equal_bits_in_twenty_runs_while_the_device_is_busy(draw, tiling):
    """A missing wait of an asynchronous copy or of a warpgroup shows where memory is slow and others compete for it."""
    needs(tiling)
    t = drawn(draw(torch.device("cuda"), 1), 5001, 1016, 200)
    first = products(t, tiling)
    torch.cuda.synchronize()
    beside, busy = torch.cuda.Stream(), torch.empty(2**26, device="cuda")
    for _ in range(20):
        with torch.cuda.stream(beside):
            busy.add_(1.0)
        assert all(torch.equal(one, other) for one, other in zip(products(t, tiling), first, strict=True))
    torch.cuda.synchronize()


@pytest.mark.parametrize("tiling", TILINGS, ids=lambda tiling: tiling.name)
def test_an_off_weight_adds_nothing_whatever_it_is(draw, tiling):
    needs(tiling)
    t = drawn(draw(torch.device("cuda"), 2), 4096, 1024, 64)
    wild = torch.tensor([float("inf"), float("nan"), -float("inf"), 1.0], device="cuda").to(torch.bfloat16)
    off = gates.unpack_gates(t["packed"], 1024).logical_not()
    poisoned = t | {"weight": torch.where(off, wild.repeat(64, 256), t["weight"])}
    for one, other in zip(products(poisoned, tiling), products(t, tiling), strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


COMPILED_BY_THE_DRIVER = """
import torch
from tss_kernels.backends.tables.cuda import has_warpgroups
from tss_kernels.gated_linear import cuda
from tss_kernels.gates import reference as gates

assert not has_warpgroups(torch.device("cuda"))
x, weight = (torch.randint(-2, 3, shape, device="cuda").to(torch.bfloat16) for shape in ((16384, 64), (1024, 64)))
gate = torch.rand(1024, 64, device="cuda") < 0.5
y = cuda.packed_linear(x, weight, gates.pack(gate), None, None, False)
assert torch.equal(y, x @ gates.masked(weight, gate).T)  # small whole numbers: exact in any order
"""


def test_where_the_driver_compiles_ptx_no_kernel_of_warpgroups_is_chosen():
    """PTX for all later architectures has no code for Hopper alone, on Hopper either."""
    needs()
    environment = os.environ | {"CUDA_FORCE_PTX_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_BY_THE_DRIVER], env=environment, capture_output=True, text=True
    )
    if "no kernel image" in done.stderr or "invalid device kernel image" in done.stderr:
        pytest.skip("the module was built without PTX")
    assert done.returncode == 0, done.stderr


def adapter(t: Tensors, up: Tensors, activation: str, tile: AdapterTile) -> list[torch.Tensor]:
    from tss_kernels.gated_adapter import cuda

    weights = t["weight"], t["packed"], up["weight"], up["packed"]
    y, hidden = cuda.forward(t["x"], *weights, t["bias"], up["bias"], activation, tile=tile)
    dx, d_hidden = cuda.input_grad(up["dy"], hidden, *weights, activation, True, tile=tile)
    return [y, hidden, dx, d_hidden]


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_an_adapter_tile_at_full_size(draw, tile, activation):
    needs()
    bottleneck = 64 if tile in NARROW else 128
    made = draw(torch.device("cuda"), 3)
    t, up = drawn(made, 5001, 1024, bottleneck), drawn(made, 5001, bottleneck, 1024)
    for one in (t, up):
        one["weight"], one["masked"] = one["weight"] * 0.05, one["masked"] * 0.05
    with poisoned_outputs():
        y, hidden, dx, d_hidden = first = adapter(t, up, activation, tile)

    def formula(dtype: torch.dtype) -> list[torch.Tensor]:
        x = t["x"].to(dtype).requires_grad_()
        inner = torch.nn.functional.linear(x, t["masked"].to(dtype), t["bias"].to(dtype))
        active = getattr(torch.nn.functional, activation)(inner)
        result = x + torch.nn.functional.linear(active, up["masked"].to(dtype), up["bias"].to(dtype))
        return [result.detach(), torch.autograd.grad(result, x, up["dy"].to(dtype))[0]]

    own, exact = formula(torch.bfloat16), formula(torch.float64)
    assert_as_exact_as_pytorch(y, own[0], exact[0])
    if activation != "relu":  # where its input is nearly 0, a ReLU's gradient is a matter of the last bit
        assert_as_exact_as_pytorch(dx, own[1], exact[1])
    error, bound = ((found.double() - exact[1]).norm() for found in (dx, own[1]))
    assert error <= 2 * bound
    assert hidden.isfinite().all()
    assert d_hidden.isfinite().all()
    for _ in range(5):
        again = adapter(t, up, activation, tile)
        assert all(torch.equal(one, other) for one, other in zip(again, first, strict=True))
