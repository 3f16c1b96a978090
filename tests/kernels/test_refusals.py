"""What operations refuse: each message names the condition, what was given and what to do."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import tss_kernels
from tss_kernels import GatedAdapter, GatedAdapterLinear, SoftMaskedAdamW

FLOAT8 = torch.float8_e4m3fn
W, S, X = torch.randn(4, 8), torch.randn(4, 8), torch.randn(3, 8)
linear = partial(tss_kernels.gated_linear, X, W)


def adapter(**changed):
    given = {"down_scores": S, "up_scores": S.T.contiguous()} | changed
    return tss_kernels.gated_adapter(X, W, up_weight=W.T.contiguous(), **given)


def adamw(**changed):
    lists = {name: [torch.rand(4, 8)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "importances")}
    tss_kernels.soft_masked_adamw_(**(lists | changed), step=1, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8)


CALLS = {
    "importance in 8 bits": (lambda: linear(S, importance=S.to(FLOAT8)), TypeError, "importance .*float32.*float8"),
    "x in 8 bits": (lambda: tss_kernels.gated_linear(X.to(FLOAT8), W.to(FLOAT8), S), TypeError, "x .*float8_e4m3"),
    "scores in 8 bits": (lambda: tss_kernels.pack_gates(S.to(FLOAT8)), TypeError, "scores .*float8_e4m3"),
    "raw importance in 8 bits": (lambda: tss_kernels.normalize_importance(S.to(FLOAT8)), TypeError, "raw .*float8"),
    "new importance in 8 bits": (
        lambda: tss_kernels.accumulate_importance_(S.abs(), S.to(FLOAT8)), TypeError, "new .*float8_e4m3"
    ),
    "gradients in 8 bits": (lambda: adamw(grads=[S.to(FLOAT8)]), TypeError, r"grads\[0\] .*float8_e4m3"),
    "sparse scores": (lambda: linear(S.to_sparse()), TypeError, "scores .*sparse_coo.*to_dense"),
    "sparse importance": (lambda: linear(S, importance=S.to_sparse()), TypeError, "importance .*sparse_coo"),
    "a sparse weight": (lambda: tss_kernels.gated_linear(X, W.to_sparse(), S), TypeError, "weight .*sparse_coo"),
    "a threshold in words": (lambda: linear(S, threshold="low"), TypeError, "threshold .*'low'.*str"),
    "no threshold": (lambda: tss_kernels.pack_gates(S, None), TypeError, "threshold .*None"),
    "a threshold that is a tensor": (lambda: linear(S, threshold=torch.tensor(0.1)), TypeError, "threshold .*Tensor"),
    "an adapter's threshold": (lambda: adapter(threshold="low"), TypeError, "threshold .*'low'"),
    "a layer's threshold of NaN": (lambda: GatedAdapterLinear(8, 4, threshold=float("nan")), ValueError, "nan"),
    "a layer's threshold": (lambda: GatedAdapterLinear(8, 4, threshold=None), TypeError, "threshold .*None"),
    "scores of the down map": (lambda: adapter(down_scores=S.T), ValueError, r"the down map: scores .*\(4, 8\)"),
    "scores of the up map": (lambda: adapter(up_scores=S), ValueError, r"the up map: scores .*\(8, 4\)"),
    "importance of the up map": (lambda: adapter(up_importance=S), ValueError, "the up map: importance"),
    "an adapter's input": (lambda: GatedAdapter(8, 4)(torch.ones(3, 9)), ValueError, r"the down map: .*\(3, 9\)"),
    "rates for many": (lambda: SoftMaskedAdamW([S], lr=torch.ones(2)), ValueError, r"lr .*\(2,\)"),
    "a rate in words": (lambda: SoftMaskedAdamW([S], lr="fast"), TypeError, "lr .*'fast'"),
    "a negative rate": (lambda: SoftMaskedAdamW([S], lr=torch.tensor(-1.0)), ValueError, "lr must be at least 0"),
}  # fmt: skip


TRANSFORMS = {
    "the gradient of scores": lambda: torch.func.grad(lambda s: linear(s).sum())(S),
    "the gradient through packed gates": lambda: torch.func.grad(
        lambda x: tss_kernels.packed_linear(x, W, tss_kernels.pack_gates(S)).sum())(X),
    "the gradient of an adapter": lambda: torch.func.grad(lambda s: adapter(down_scores=s).sum())(S),
    "a layer that trains, over a batch": lambda: torch.func.vmap(GatedAdapterLinear(8, 4))(torch.ones(2, 3, 8)),
}  # fmt: skip


@pytest.mark.parametrize("call", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_that_would_have_to_differentiate(call):
    with pytest.raises(NotImplementedError, match=r"torch\.func transforms .*use torch\.autograd"):
        call()


def test_a_batch_without_gradients():
    layer, x = GatedAdapterLinear(8, 4), torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))


@pytest.mark.parametrize(("call", "kind", "says"), CALLS.values(), ids=CALLS)
def test_refused(call, kind, says):
    with pytest.raises(kind, match=says):
        call()


def test_a_threshold_set_later():
    """Also where the layer's last product could be used again."""
    layer = GatedAdapterLinear(8, 4)
    layer(X)
    layer.threshold = "low"
    with pytest.raises(TypeError, match="threshold must be a number"):
        layer(X)


def test_what_fits_is_taken():
    """The calls above are refused for what is wrong with them alone."""
    linear(S)
    linear(S, importance=S.abs(), threshold=1)
    adapter()
    adamw()
    SoftMaskedAdamW([S], lr=torch.tensor(0.1))
