"""The bit layout and the product with packed gates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tss_kernels
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout

floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
scores_arrays = st.tuples(st.integers(0, 5), st.integers(0, 70)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=floats)
)


@settings(deadline=None, max_examples=80)
@given(scores_arrays, floats)
def test_bit_layout(scores, threshold):
    packed = tss_kernels.pack_gates(torch.from_numpy(scores), threshold)
    gate = scores >= np.float32(threshold)
    # numpy's bit i of byte j is column 8 j + i for little bit order, with zero padding: the layout in question.
    assert np.array_equal(packed.numpy(), np.packbits(gate, axis=1, bitorder="little"))
    assert np.array_equal(tss_kernels.unpack_gates(packed, scores.shape[1]).numpy(), gate)


def test_bit_layout_by_example():
    scores = torch.full((2, 10), -1.0)
    scores[0, 0] = scores[0, 3] = scores[1, 9] = 1.0
    assert tss_kernels.pack_gates(scores).tolist() == [[0b1001, 0], [0, 0b10]]


def test_edge_scores():
    scores = torch.tensor([[0.0, -0.0, float("nan"), float("inf"), -float("inf"), -1e-45, 1e-45]])
    assert tss_kernels.pack_gates(scores).tolist() == [[0b1001011]]
    assert tss_kernels.pack_gates(scores, float("nan")).tolist() == [[0]]


@pytest.mark.parametrize("layout", ["permuted", "sliced", "expanded"])
def test_scores_and_bits_in_any_layout(layout):
    scores = in_layout(torch.randn(6, 21), layout)
    packed = tss_kernels.pack_gates(scores)
    assert torch.equal(packed, tss_kernels.pack_gates(scores.clone()))
    assert torch.equal(tss_kernels.unpack_gates(in_layout(packed, layout), 21), in_layout(scores, layout) >= 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 9, 5), (33, 31, 17), (63, 64, 3), (5, 0, 3), (5, 3, 0)])
def test_packed_product_is_the_gated_one(dtype, shape):
    rows, in_features, out_features = shape
    x, dy = torch.randn(rows, in_features).to(dtype), torch.randn(rows, out_features).to(dtype)
    weight, scores = torch.randn(out_features, in_features).to(dtype), torch.randn(out_features, in_features)
    bias, results = torch.randn(out_features).to(dtype), []
    for product, gates in (
        (tss_kernels.gated_linear, scores),
        (tss_kernels.packed_linear, tss_kernels.pack_gates(scores)),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        y = product(leaves[0], leaves[1], gates, leaves[2])
        y.backward(dy)
        results.append([y, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(gated, packed) for gated, packed in zip(*results, strict=True))
    masked = torch.where(scores >= 0, weight, 0)
    exact = x.double() @ masked.double().T + bias.double()
    assert_as_exact_as_pytorch(results[1][0].detach(), torch.nn.functional.linear(x, masked, bias), exact)


def test_off_entries_may_hold_anything():
    weight = torch.tensor([[float("nan"), 2.0, float("inf")]])
    packed = tss_kernels.pack_gates(torch.tensor([[-1.0, 1.0, -1.0]]))
    x = torch.randn(4, 3, requires_grad=True)
    y = tss_kernels.packed_linear(x, weight, packed)
    y.sum().backward()
    assert torch.equal(y, 2 * x[:, 1:2])
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0, 0.0]).expand(4, 3))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: tss_kernels.pack_gates(torch.zeros(3)), ValueError, r"shape \(3,\)"),
        (lambda: tss_kernels.pack_gates(torch.zeros(3, 3, dtype=torch.int64)), TypeError, "torch.int64"),
        (lambda: tss_kernels.unpack_gates(torch.zeros(2, 1), 8), TypeError, "torch.float32: make them with pack_gates"),
        (lambda: tss_kernels.unpack_gates(torch.zeros(2, 1, dtype=torch.uint8), 9), ValueError, r"\(out, 2\) but"),
        (
            lambda: tss_kernels.packed_linear(torch.zeros(2, 9), torch.zeros(3, 9), torch.zeros(3, 1).byte()),
            ValueError,
            r"\(3, 2\) but have \(3, 1\)",
        ),
        (
            lambda: tss_kernels.packed_linear(torch.zeros(2, 9), torch.zeros(3, 9), torch.zeros(3, 9)),
            TypeError,
            "uint8 but are torch.float32",
        ),
    ],
)
def test_errors_name_condition_and_values(call, error, says):
    with pytest.raises(error, match=says):
        call()
