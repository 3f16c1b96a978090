"""Importance: the formula by hand, its edge cases, the maximum over tasks."""

from __future__ import annotations

import pytest
import torch

import tss_kernels
from tss_kernels.backends.registry import why_not
from tss_kernels.importance import reference
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout, poisoned_outputs

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# One block, several chunks in the tensor, several chunks in a row, one element in a row.
SHAPES = [(7, 33), (5, 900), (2, 2100), (9, 1)]
DRAWS = {
    "small": lambda shape: torch.randn(shape) * 1e-3,
    "far from 0": lambda shape: torch.randn(shape) * 1e-2 + 3,
    "heavy tails": lambda shape: torch.randn(shape) ** 5,
}


def exactly(raw: torch.Tensor, per: str) -> torch.Tensor:
    """The README's formula in float64."""
    groups = [raw.double()] if per == "tensor" else list(raw.double())
    return torch.stack([((a - a.mean()) / (a.std(correction=0) + 1e-6)).tanh().abs() for a in groups]).view(raw.shape)


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", DRAWS)
def test_formula(backend, device, per, dtype, shape, draw):
    backend.runs("normalize_importance", dtype)
    torch.manual_seed(0)
    raw = DRAWS[draw](shape).to(dtype).to(device)
    with tss_kernels.use_backend(backend), poisoned_outputs():
        importance = tss_kernels.normalize_importance(raw, per=per)
    pytorch = reference.normalize_importance(raw, per)
    assert importance.dtype == torch.float32
    assert_as_exact_as_pytorch(importance, pytorch, exactly(raw, per))
    assert ((importance >= 0) & (importance <= 1)).all()


@pytest.mark.parametrize("name", ["triton", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_exact_result_is_rounded_once(device, name, dtype):
    """Also where an importance is near 0, on both sides of a series and down to subnormal raw values."""
    obstacle = why_not(name, "normalize_importance", device, dtype)
    if obstacle is not None:
        pytest.skip(obstacle.reason)
    raw = torch.cat([torch.logspace(-30, 0, 200, dtype=torch.float64), torch.linspace(0.01, 0.03, 100).double()])
    raw = torch.cat([raw, -raw]).to(dtype).to(device)  # the mean is 0, so small elements have a small importance
    for scale in (1.0, 1e-38):
        with tss_kernels.use_backend(name):
            importance = tss_kernels.normalize_importance(raw * scale)
        exact = exactly((raw * scale)[None], "tensor")[0]
        # Float64's own noise of the mean, relative to the deviation, is what remains of the smallest ones.
        noise = 1e-15 * exact.max()
        normal = exact > torch.finfo(torch.float32).tiny
        error = ((importance.double() - exact).abs() - noise).clamp(min=0) / exact
        assert (error[normal] <= torch.finfo(torch.float32).eps / 2 + 1e-9).all(), scale


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("shape", [(3, 1), (1, 1), (0, 4), (3, 0), (2, 1500)], ids=str)
def test_no_deviation_gives_zero(backend, device, per, shape):
    backend.runs("normalize_importance", torch.float32)
    with tss_kernels.use_backend(backend), poisoned_outputs():
        importance = tss_kernels.normalize_importance(torch.full(shape, 0.5, device=device), per=per)
    assert importance.shape == shape
    assert (importance == 0).all()


def test_no_backend_overflows_or_rounds_a_mean(backend, device):
    backend.runs("normalize_importance", torch.float32)
    large = torch.linspace(-1e25, 1e25, 512, device=device).view(2, 256)
    with tss_kernels.use_backend(backend):
        assert not tss_kernels.normalize_importance(torch.full((64, 256), 3.3, device=device)).any()
        importance = tss_kernels.normalize_importance(large)
    torch.testing.assert_close(importance, exactly(large, "tensor").float(), rtol=1e-5, atol=1e-6)


def test_a_total_that_needs_a_gradient_is_refused():
    leaf = torch.zeros(2, 3, requires_grad=True)
    for total in (leaf, leaf * 1):
        for write in (tss_kernels.accumulate_importance_, tss_kernels.update_importance_):
            with pytest.raises(ValueError, match="total requires a gradient"):
                write(total, torch.ones(2, 3))
    with torch.no_grad():
        tss_kernels.accumulate_importance_(leaf, torch.ones(2, 3))
    assert leaf.eq(1).all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [(0, 0), (1, 1400)], ids=["first", "in another block"])
def test_what_is_not_finite_stays_visible(backend, device, wrong, at):
    backend.runs("update_importance_", torch.float32)
    raw, total = torch.randn(2, 1500, device=device), torch.rand(2, 1500, device=device)
    raw[at] = wrong
    with tss_kernels.use_backend(backend):
        tss_kernels.update_importance_(total, raw, per="row")
        assert total[at[0]].isnan().all()
        assert total[1 - at[0]].isfinite().all()
        assert tss_kernels.normalize_importance(raw).isnan().all()


def test_scale_of_the_gradient_does_not_matter(backend, device):
    backend.runs("normalize_importance", torch.float32)
    raw = torch.randn(5, 9, device=device)
    with tss_kernels.use_backend(backend):
        torch.testing.assert_close(tss_kernels.normalize_importance(raw), tss_kernels.normalize_importance(1000 * raw))


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced"])
def test_maximum_in_place(backend, device, layout):
    backend.runs("accumulate_importance_", torch.float32)
    total, new = torch.rand(33, 35, device=device), torch.rand(33, 35, device=device)
    total[0, :4], new[0, :4] = torch.tensor([0.0, 1.0, 0.5, 0.25]), torch.tensor([-0.0, 0.0, 0.25, 0.5])
    total[1, 0] = new[2, 0] = total[3, 0] = new[3, 0] = float("nan")
    expected = torch.maximum(total, new)
    total, new = in_layout(total, layout), in_layout(new, layout)
    with tss_kernels.use_backend(backend):
        assert tss_kernels.accumulate_importance_(total, new) is total
    torch.testing.assert_close(total, expected, rtol=0, atol=0, equal_nan=True)
    assert total.isnan().sum() == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("new_dtype", [torch.float64, torch.bfloat16], ids=str)
def test_maximum_in_the_dtype_of_the_total(backend, device, dtype, new_dtype):
    backend.runs("accumulate_importance_", dtype)
    total, new = torch.rand(3, 40, device=device).to(dtype), torch.rand(3, 40, device=device).to(new_dtype)
    expected = torch.maximum(total, new.to(dtype))
    with tss_kernels.use_backend(backend):
        tss_kernels.accumulate_importance_(total, new)
    assert torch.equal(total, expected)


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("raw_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_update_is_normalize_then_accumulate(backend, device, per, raw_dtype, dtype):
    """Bit for bit, with NaN in the total too."""
    backend.runs("update_importance_", dtype)
    raw, total = torch.randn(2, 1100, device=device).to(raw_dtype), torch.rand(2, 1100, device=device).to(dtype)
    total[1, 5] = float("nan")
    one, two = total.clone(), in_layout(total.clone(), "sliced")
    with tss_kernels.use_backend(backend):
        new = tss_kernels.normalize_importance(raw, per=per)
        tss_kernels.accumulate_importance_(total, new)
        assert tss_kernels.update_importance_(one, raw, per=per) is one
        tss_kernels.update_importance_(two, raw, per=per)
    for updated in (one, two):
        torch.testing.assert_close(updated, total, rtol=0, atol=0, equal_nan=True)
    assert total.isnan().sum() == 1
    assert (total == new.to(dtype)).any()


def test_nothing_to_update(backend, device):
    backend.runs("update_importance_", torch.float32)
    empty = torch.zeros(3, 0, device=device)
    with tss_kernels.use_backend(backend):
        tss_kernels.update_importance_(empty, empty.double(), per="row")
        tss_kernels.accumulate_importance_(empty, empty)


def test_equal_bits_in_twenty_runs(backend, device):
    backend.runs("update_importance_", torch.float32)
    raw = torch.randn(3, 700, device=device)
    totals = [torch.zeros(3, 700, device=device) for _ in range(20)]
    with tss_kernels.use_backend(backend):
        for total in totals:
            tss_kernels.update_importance_(total, raw)
    assert all(torch.equal(total, totals[0]) for total in totals)


@pytest.mark.parametrize(
    "write", [tss_kernels.accumulate_importance_, tss_kernels.update_importance_], ids=lambda write: write.__name__
)
def test_autograd_notices_the_write(backend, device, write):
    backend.runs("update_importance_", torch.float32)
    total, x = torch.zeros(2, 3, device=device), torch.randn(2, 3, device=device)
    y = (total * torch.ones_like(x, requires_grad=True)).sum()
    before = total._version
    with tss_kernels.use_backend(backend):
        write(total, x)
    assert total._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


T = torch.rand(4, 4)


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced"])
def test_a_total_may_be_accumulated_with_itself(backend, device, layout):
    backend.runs("accumulate_importance_", torch.float32)
    total = in_layout(torch.rand(5, 9, device=device), layout)
    before = total.clone()
    with tss_kernels.use_backend(backend):
        tss_kernels.accumulate_importance_(total, total)
    assert torch.equal(total, before)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: tss_kernels.normalize_importance(torch.zeros(2, 2), per="column"),
            ValueError,
            "'row' but is 'column'",
        ),
        (lambda: tss_kernels.normalize_importance(torch.zeros(2, 2).long()), TypeError, "torch.int64"),
        (lambda: tss_kernels.normalize_importance(torch.tensor(1.0)), ValueError, "single number"),
        (lambda: tss_kernels.accumulate_importance_(torch.zeros(2), torch.zeros(3)), ValueError, r"\(2,\), new \(3,\)"),
        (lambda: tss_kernels.accumulate_importance_(torch.zeros(2), torch.zeros(2).long()), TypeError, "torch.int64"),
        (lambda: tss_kernels.update_importance_(torch.zeros(2), torch.zeros(3)), ValueError, r"\(2,\), raw \(3,\)"),
        (
            lambda: tss_kernels.update_importance_(torch.zeros(2).long(), torch.zeros(2)),
            TypeError,
            "total must have a floating dtype, .* but has torch.in",
        ),
        (
            lambda: tss_kernels.update_importance_(torch.zeros(2), torch.zeros(2), per="all"),
            ValueError,
            "'row' but is 'all'",
        ),
        (lambda: tss_kernels.accumulate_importance_(T[:1].expand(4, 4), T), ValueError, "total .* at one address"),
        (lambda: tss_kernels.accumulate_importance_(T[:3], T[1:]), ValueError, "total .* shares memory with new"),
        (lambda: tss_kernels.update_importance_(T[:1].expand(4, 4), T), ValueError, "total .* at one address"),
        (lambda: tss_kernels.update_importance_(T, T), ValueError, "total .* shares memory with raw"),
    ],
)
def test_errors_name_condition_and_values(call, error, says):
    with pytest.raises(error, match=says):
        call()
