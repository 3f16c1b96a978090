"""Importance: the formula by hand, its edge cases, the maximum over tasks."""

from __future__ import annotations

import pytest
import torch

import tss_kernels


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_formula(per, dtype):
    raw = (torch.randn(7, 33) * 1e-3).to(dtype)
    groups = [raw.double()] if per == "tensor" else list(raw.double())
    by_hand = [((a - a.mean()) / (a.std(correction=0) + 1e-6)).tanh().abs() for a in groups]
    importance = tss_kernels.normalize_importance(raw, per=per)
    assert importance.dtype == torch.float32
    torch.testing.assert_close(importance.double(), torch.stack(by_hand).view(7, 33), rtol=1e-4, atol=1e-6)
    assert ((importance >= 0) & (importance <= 1)).all()


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("shape", [(3, 1), (1, 1), (0, 4), (3, 0)])
def test_no_deviation_gives_zero(per, shape):
    importance = tss_kernels.normalize_importance(torch.full(shape, 0.5), per=per)
    assert importance.shape == shape
    assert (importance == 0).all()


def test_scale_of_the_gradient_does_not_matter():
    raw = torch.randn(5, 9)
    torch.testing.assert_close(tss_kernels.normalize_importance(raw), tss_kernels.normalize_importance(1000 * raw))


def test_maximum_in_place():
    total, new = torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.2])
    assert tss_kernels.accumulate_importance_(total, new) is total
    assert torch.equal(total, torch.tensor([0.5, 0.9]))


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
    ],
)
def test_errors_name_condition_and_values(call, error, says):
    with pytest.raises(error, match=says):
        call()
