"""The bit layout and the product with packed gates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tss_kernels
from tss_kernels.backends.dispatch import implementation
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout, poisoned_outputs

floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
scores_arrays = st.tuples(st.integers(0, 5), st.integers(0, 70)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=floats)
)


def numpy_bits(gate: torch.Tensor) -> torch.Tensor:
    """numpy's bit i of byte j is column 8 j + i for little bit order, with zero padding: the layout in question."""
    return torch.from_numpy(np.packbits(gate.cpu().numpy(), axis=1, bitorder="little"))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scores_arrays, floats)
def test_bit_layout(backend, device, scores, threshold):
    backend.runs("pack_gates", torch.float32)
    gate = torch.from_numpy(scores >= np.float32(threshold))
    with tss_kernels.use_backend(backend), poisoned_outputs():
        packed = tss_kernels.pack_gates(torch.from_numpy(scores).to(device), threshold)
        unpacked = tss_kernels.unpack_gates(packed, scores.shape[1])
    assert torch.equal(packed.cpu(), numpy_bits(gate))
    assert torch.equal(unpacked.cpu(), gate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 264), (17, 257), (8, 256), (3, 515), (0, 5), (5, 0)], ids=str)
def test_bit_layout_over_many_tiles(backend, device, dtype, shape):
    backend.runs("pack_gates", dtype)
    torch.manual_seed(0)
    scores = torch.randn(shape).to(dtype).to(device)
    with tss_kernels.use_backend(backend), poisoned_outputs():
        packed = tss_kernels.pack_gates(scores, 0.25)
        unpacked = tss_kernels.unpack_gates(packed, shape[1])
    assert torch.equal(packed.cpu(), numpy_bits(scores >= 0.25))
    assert torch.equal(unpacked, scores >= 0.25)


def test_bit_layout_by_example():
    scores = torch.full((2, 10), -1.0)
    scores[0, 0] = scores[0, 3] = scores[1, 9] = 1.0
    assert tss_kernels.pack_gates(scores).tolist() == [[0b1001, 0], [0, 0b10]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_edge_scores(backend, device, dtype):
    backend.runs("pack_gates", dtype)
    small = {torch.float32: 1e-45, torch.bfloat16: 9.2e-41, torch.float16: 6e-8}[dtype]  # the smallest subnormals
    scores = [[0.0, -0.0, float("nan"), float("inf"), -float("inf"), -small, small]]
    scores = torch.tensor(scores, dtype=dtype, device=device)
    assert (scores[0, 5:] != 0).all()
    with tss_kernels.use_backend(backend):
        for threshold, bits in ((0.0, 0b1001011), (-0.0, 0b1001011), (small, 0b1001000), (float("inf"), 0b1000)):
            assert tss_kernels.pack_gates(scores, threshold).tolist() == [[bits]], threshold
        assert tss_kernels.pack_gates(scores, -float("inf")).tolist() == [[0b1111011]]
        assert tss_kernels.pack_gates(scores, float("nan")).tolist() == [[0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("threshold", [0.1, 0.3, -0.7, 1e-3])
def test_a_threshold_has_the_precision_of_the_scores(backend, device, dtype, threshold):
    """A score set to the threshold is on, whichever way its dtype rounds it, and the next smaller one is off."""
    backend.runs("pack_gates", dtype)
    at = torch.tensor([[threshold]], dtype=dtype, device=device)
    below = (at.view(torch.int16) + (1 if threshold < 0 else -1)).view(dtype)
    with tss_kernels.use_backend(backend):
        assert tss_kernels.pack_gates(torch.cat([at, below], dim=1), threshold).tolist() == [[1]]


@pytest.mark.parametrize("layout", ["permuted", "sliced", "expanded"])
def test_scores_and_bits_in_any_layout(backend, device, layout):
    backend.runs("pack_gates", torch.float32)
    scores = in_layout(torch.randn(6, 21, device=device), layout)
    with tss_kernels.use_backend(backend):
        packed = tss_kernels.pack_gates(scores)
        unpacked = tss_kernels.unpack_gates(in_layout(packed, layout), 21)
    assert torch.equal(packed.cpu(), numpy_bits(scores >= 0))
    assert torch.equal(unpacked, in_layout(scores, layout) >= 0)


@pytest.mark.parametrize(
    "shapes", [((9, 40), (40, 9)), ((3, 300), (0, 5)), ((0, 5), (17, 8)), ((5, 0), (0, 5))], ids=str
)
def test_a_pair_is_packed_as_its_two(backend, device, shapes):
    backend.runs("pack_gates", torch.float32)
    pair = [torch.randn(shape, device=device) for shape in shapes]
    with poisoned_outputs():
        packed = implementation("pack_gates", backend).pack_gates_pair(pair[0], pair[1].bfloat16(), 0.5)
    assert torch.equal(packed[0].cpu(), numpy_bits(pair[0] >= 0.5))
    assert torch.equal(packed[1].cpu(), numpy_bits(pair[1].bfloat16() >= 0.5))


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


@pytest.mark.parametrize("columns", [8, 64, 256])
def test_one_row_that_was_a_column(backend, columns, device):
    """Such a row counts as contiguous whatever its stride is."""
    backend.runs("pack_gates", torch.float32)
    scores = torch.randn(columns, 1, device=device)
    expected = tss_kernels.pack_gates(scores.t().clone(memory_format=torch.contiguous_format).reshape(1, -1).clone())
    with tss_kernels.use_backend(backend):
        packed = tss_kernels.pack_gates(scores.t())
        assert torch.equal(packed, expected)
        column = torch.empty((packed.shape[1], 3), dtype=torch.uint8, device=device)[:, :1]
        column.copy_(packed.t())
        assert torch.equal(tss_kernels.unpack_gates(column.t(), columns), scores.t() >= 0)
        x, weight = torch.randn(3, columns, device=device), torch.randn(1, columns, device=device)
        y = tss_kernels.packed_linear(x, weight, column.t())
        torch.testing.assert_close(y, x @ torch.where(scores.t() >= 0, weight, 0).t())
        y = tss_kernels.gated_linear(x, weight.t().clone().t(), scores.t())
        torch.testing.assert_close(y, x @ torch.where(scores.t() >= 0, weight, 0).t())
