"""The bytes and operations that `explain` says of BART-Large's layers, against formulas written down here once more."""

from __future__ import annotations

import pytest
import torch

from tss_kernels import explain

D, R = 1024, 64  # features and bottleneck
TENSORS, SCORES = 48, 48 * D * R  # gated matrices of all adapters, and their scores
HYPER = {"step": 1, "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}


def of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of this shape that takes no memory."""
    return torch.empty((), dtype=dtype).expand(shape)


def written(*shape: int) -> torch.Tensor:
    """A tensor that may be written to: each element has an address of its own, and memory that nothing touches."""
    return torch.empty(shape)


def half(*shape: int) -> torch.Tensor:
    return of(*shape, dtype=torch.bfloat16)


@pytest.mark.parametrize("rows", [4096, 65536])
@pytest.mark.parametrize(("out_features", "in_features"), [(R, D), (D, R), (D, D)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_layer(rows, out_features, in_features, biased):
    weights = out_features * in_features
    x, weight, bias = half(rows, in_features), half(out_features, in_features), half(out_features) if biased else None
    moved = 2 * (rows * in_features + rows * out_features + weights + biased * out_features)
    by_scores = explain("gated_linear", x, weight, of(out_features, in_features), bias=bias)
    assert (by_scores.bytes, by_scores.flops) == (moved + 4 * weights, 2 * rows * weights)
    packed = of(out_features, in_features // 8, dtype=torch.uint8)
    by_gates = explain("packed_linear", x, weight, packed, bias=bias)
    assert (by_gates.bytes, by_gates.flops) == (moved + weights // 8, 2 * rows * weights)


@pytest.mark.parametrize("rows", [4096, 65536])
def test_an_adapter(rows):
    """x is read and y written once, and the hidden units for the backward pass."""
    told = explain("gated_adapter", half(rows, D), half(R, D), of(R, D), half(D, R), of(D, R))
    assert told.bytes == 2 * 2 * rows * D + 2 * rows * R + 2 * D * R * (2 + 4)
    assert told.flops == 2 * (2 * rows * D * R)


def test_a_step_moves_32_bytes_a_score():
    lists = [[written(R, D) for _ in range(TENSORS)] for _ in range(4)]
    names = dict(zip(("params", "grads", "exp_avgs", "exp_avg_sqs"), lists, strict=True))
    told = explain("soft_masked_adamw_", **names, importances=[of(R, D)] * TENSORS, **HYPER)
    assert told.bytes == 32 * SCORES
    assert explain("soft_masked_adamw_", **names, importances=[None] * TENSORS, **HYPER).bytes == 28 * SCORES


@pytest.mark.parametrize("columns", [D, D + 1])
def test_gates(columns):
    """A bit a gate; a row that ends within a byte fills it."""
    row_bytes = 128 if columns == D else 129
    assert explain("pack_gates", of(R, columns)).bytes == R * (4 * columns + row_bytes)
    assert explain("pack_gates", half(R, columns)).bytes == R * (2 * columns + row_bytes)
    assert explain("unpack_gates", of(R, row_bytes, dtype=torch.uint8), columns).bytes == R * (row_bytes + columns)


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_importance(per):
    """Two reads for the statistics and for what they are used on; the total is read and written."""
    assert explain("normalize_importance", of(R, D), per=per).bytes == R * D * (4 + 4 + 4)
    assert explain("update_importance_", written(R, D), of(R, D), per=per).bytes == R * D * (4 + 4 + 4 + 4)
    assert explain("accumulate_importance_", written(R, D), of(R, D)).bytes == R * D * (4 + 4 + 4)
