"""Full sizes against float64, equal bits, tf32 allowed and forbidden, autocast and checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tss_kernels
from tss_kernels.testing import assert_as_exact_as_pytorch, poisoned_outputs

pytestmark = pytest.mark.gpu

BART_LARGE = [(4096, 1024, 64), (4096, 64, 1024), (4096, 1024, 1024), (16384, 1024, 64), (16384, 1024, 1024)]


@pytest.fixture
def fp32_precision():
    """Sets how float32 products may be computed, and sets it back."""
    before = torch.backends.cuda.matmul.fp32_precision

    def put(precision: str) -> None:
        torch.backends.cuda.matmul.fp32_precision = precision

    yield put
    put(before)


def drawn(made, rows: int, inner: int, out: int) -> dict[str, torch.Tensor]:
    return {
        "x": made.normal(rows, inner), "weight": made.normal(out, inner), "bias": made.normal(out),
        "dy": made.normal(rows, out), "scores": made.normal(out, inner, dtype=torch.float32),
        "importance": made.unit(out, inner),
    }  # fmt: skip


def by_hand(t: dict[str, torch.Tensor], dtype: torch.dtype, wide: torch.dtype) -> list[torch.Tensor]:
    x, weight, bias, dy = (t[name].to(dtype) for name in ("x", "weight", "bias", "dy"))
    masked = torch.where(t["scores"] >= 0, weight, 0)
    product = (dy.to(wide).T @ x.to(wide)) * weight.to(wide) * (1 - t["importance"].to(wide))
    return [torch.nn.functional.linear(x, masked, bias), dy @ masked, product]


def assert_exact(t: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    x, scores = t["x"].detach().requires_grad_(), t["scores"].detach().requires_grad_()
    with poisoned_outputs():
        y = tss_kernels.gated_linear(x, t["weight"], scores, t["bias"], importance=t["importance"])
        found = [y.detach(), *torch.autograd.grad(y, (x, scores), t["dy"])]
        packed = tss_kernels.packed_linear(x, t["weight"], tss_kernels.pack_gates(scores), t["bias"])
    own = by_hand(t, dtype, torch.promote_types(dtype, torch.float32))
    exact = by_hand(t, torch.float64, torch.float64)
    for one, pytorch, reference in zip(found, own, exact, strict=True):
        assert_as_exact_as_pytorch(one, pytorch, reference)
    assert_as_exact_as_pytorch(packed.detach(), own[0], exact[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", BART_LARGE, ids=str)
def test_gated_linear_at_the_sizes_of_bart_large(backend, draw, shape, dtype):
    backend.runs("gated_linear", dtype)
    with tss_kernels.use_backend(backend):
        assert_exact(drawn(draw(torch.device("cuda"), 0, dtype), *shape), dtype)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("shape", [(4096, 1024, 64), (1000, 70, 130)], ids=str)
def test_float32_is_as_exact_as_pytorchs_under_its_setting(by, draw, fp32_precision, shape, precision):
    fp32_precision(precision)
    t = drawn(draw(torch.device("cuda"), 0, torch.float32), *shape)
    assert_exact(t, torch.float32)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_gated_adapter_at_the_size_of_bart_large(by, draw, activation):
    made = draw(torch.device("cuda"), 0)
    values = [
        made.normal(4096, 1024), made.normal(64, 1024) * 0.05, made.normal(64, 1024, dtype=torch.float32),
        made.normal(1024, 64) * 0.05, made.normal(1024, 64, dtype=torch.float32), made.normal(64), made.normal(1024),
    ]  # fmt: skip
    with poisoned_outputs():
        found = tss_kernels.gated_adapter(*values, activation=activation)

    def by_formula(dtype: torch.dtype) -> torch.Tensor:
        x, down, _, up, _, down_bias, up_bias = (value.to(dtype) for value in values)
        down, up = torch.where(values[2] >= 0, down, 0), torch.where(values[4] >= 0, up, 0)
        function = getattr(torch.nn.functional, activation)
        hidden = function(torch.nn.functional.linear(x, down, down_bias))
        return x + torch.nn.functional.linear(hidden, up, up_bias)

    assert_as_exact_as_pytorch(found, by_formula(torch.bfloat16), by_formula(torch.float64))


def test_equal_bits_in_twenty_runs(run):
    first = run("cuda", 5)
    for _ in range(19):
        assert all(torch.equal(one, other) for one, other in zip(run("cuda", 5), first, strict=True))


def test_equal_bits_in_twenty_runs_at_full_size(by, draw):
    t = drawn(draw(torch.device("cuda"), 6), 16384, 1024, 64)

    def results() -> list[torch.Tensor]:
        x, scores = t["x"].detach().requires_grad_(), t["scores"].detach().requires_grad_()
        y = tss_kernels.gated_linear(x, t["weight"], scores, t["bias"], importance=t["importance"])
        return [y.detach(), *torch.autograd.grad(y, (x, scores), t["dy"])]

    first = results()
    for _ in range(19):
        assert all(torch.equal(one, other) for one, other in zip(results(), first, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend, draw, dtype):
    backend.runs("gated_linear", dtype)
    t = drawn(draw(torch.device("cuda"), 0, torch.float32), 600, 96, 48)

    def results(dtype: torch.dtype) -> list[torch.Tensor]:
        x, scores = t["x"].detach().requires_grad_(), t["scores"].detach().requires_grad_()
        y = tss_kernels.gated_linear(x.to(dtype), t["weight"].to(dtype), scores, t["bias"].to(dtype))
        return [y.detach(), *torch.autograd.grad(y, (x, scores), t["dy"].to(y.dtype))]

    with tss_kernels.use_backend(backend):
        expected = results(dtype)
        with torch.autocast("cuda", dtype):
            found = results(torch.float32)
    assert [tensor.dtype for tensor in found] == [dtype, torch.float32, torch.float32]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(backend, draw, use_reentrant):
    backend.runs("gated_adapter", torch.bfloat16)
    torch.manual_seed(0)
    module = tss_kernels.GatedAdapter(96, 16, "gelu", device="cuda", dtype=torch.bfloat16)
    x = draw(torch.device("cuda"), 0).normal(600, 96)

    def results(again: bool) -> list[torch.Tensor]:
        module.zero_grad()
        leaf = x.detach().requires_grad_()
        y = checkpoint(module, leaf, use_reentrant=use_reentrant) if again else module(leaf)
        y.backward(x)
        return [y.detach(), leaf.grad, module.down.scores.grad, module.up.scores.grad]

    with tss_kernels.use_backend(backend):
        pairs = zip(results(True), results(False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
