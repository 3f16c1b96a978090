"""What operations refuse: each message names the condition, what was given and what to do."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad

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
    "a sparse bias": (lambda: linear(S, bias=torch.zeros(4).to_sparse()), TypeError, "bias .*sparse_coo.*to_dense"),
    "sparse x": (lambda: tss_kernels.gated_linear(X.to_sparse(), W, S), TypeError, "x .*sparse_coo.*to_dense"),
    "sparse packed gates": (
        lambda: tss_kernels.packed_linear(X, W, tss_kernels.pack_gates(S).to_sparse()), TypeError, "packed .*sparse_coo"
    ),
    "sparse scores to pack": (lambda: tss_kernels.pack_gates(S.to_sparse()), TypeError, "scores .*sparse_coo"),
    "sparse gates to unpack": (
        lambda: tss_kernels.unpack_gates(tss_kernels.pack_gates(S).to_sparse(), 8), TypeError, "packed .*sparse_coo"
    ),
    "a sparse raw importance": (lambda: tss_kernels.normalize_importance(S.to_sparse()), TypeError, "raw .*sparse_coo"),
    "a sparse total": (lambda: tss_kernels.accumulate_importance_(S.to_sparse(), S), TypeError, "total .*sparse_coo"),
    "an adapter's sparse weight": (
        lambda: tss_kernels.gated_adapter(X, W.to_sparse(), S, W.T, S.T), TypeError, "down_weight .*sparse_coo"
    ),
    "x in a list": (lambda: tss_kernels.gated_linear(X.tolist(), W, S), TypeError, "x must be a tensor .*list"),
    "a weight of NumPy's": (lambda: tss_kernels.gated_linear(X, W.numpy(), S), TypeError, "weight must .*ndarray"),
    "no scores": (lambda: linear(None), TypeError, "scores must be a tensor but is None"),
    "a bias in a list": (lambda: linear(S, bias=[0.0] * 4), TypeError, "bias must be a tensor .*list"),
    "an importance that is a number": (lambda: linear(S, importance=0.5), TypeError, "importance must .*0.5, a float"),
    "packed gates in a list": (lambda: tss_kernels.packed_linear(X, W, [1]), TypeError, "packed gates must .*list"),
    "scores to pack in a list": (lambda: tss_kernels.pack_gates([[1.0]]), TypeError, "scores must be a tensor"),
    "gates to unpack in a list": (lambda: tss_kernels.unpack_gates([[1]], 8), TypeError, "packed gates must be"),
    "half a column": (
        lambda: tss_kernels.unpack_gates(tss_kernels.pack_gates(S), 8.0), TypeError, "in_features .*8.0, a float"
    ),
    "a raw importance in a list": (lambda: tss_kernels.normalize_importance([1.0]), TypeError, "raw .*list"),
    "a new importance that is a number": (
        lambda: tss_kernels.accumulate_importance_(S.abs(), 1.0), TypeError, "new must be a tensor but is 1.0"
    ),
    "an adapter's x": (lambda: tss_kernels.gated_adapter(None, W, S, W.T, S.T), TypeError, "x must be a tensor"),
    "an adapter's up scores": (lambda: adapter(up_scores=None), TypeError, "the up map: scores must be a tensor"),
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


FORWARD = {
    "x": lambda dual: tss_kernels.gated_linear(dual(X), W, S),
    "scores": lambda dual: linear(dual(S)),
    "the weight": lambda dual: tss_kernels.gated_linear(X, dual(W), S),
    "x by packed gates": lambda dual: tss_kernels.packed_linear(dual(X), W, tss_kernels.pack_gates(S)),
    "an adapter's scores": lambda dual: adapter(down_scores=dual(S)),
    "an adapter's x": lambda dual: GatedAdapter(8, 4)(dual(X)),
    "the weight of many tasks": lambda dual: tss_kernels.multi_task_linear(X, dual(W), BANK, torch.zeros(3).long()),
}


@pytest.mark.parametrize("call", FORWARD.values(), ids=FORWARD)
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode(backend, call, grad):
    """It would lose a tangent without a word."""
    backend.runs("gated_linear", torch.float32)
    with tss_kernels.use_backend(backend), forward_ad.dual_level(), torch.set_grad_enabled(grad):
        with pytest.raises(NotImplementedError, match=r"forward_ad does not see .*use torch\.autograd's backward"):
            call(lambda tensor: forward_ad.make_dual(tensor, torch.ones_like(tensor)))
        call(lambda tensor: tensor)


@pytest.mark.parametrize("name", ["gated_linear", "pack_gates", "normalize_importance", "accumulate_importance_"])
@pytest.mark.parametrize(
    "wrong", [None, S.to_sparse(), S.to(FLOAT8), S.long()], ids=["none", "sparse", "8b", "integer"]
)
def test_explain_refuses_what_the_operation_refuses(name, wrong):
    arguments = {
        "gated_linear": (X, W, wrong),
        "pack_gates": (wrong,),
        "normalize_importance": (wrong,),
        "accumulate_importance_": (S.abs(), wrong),
    }[name]
    with pytest.raises((TypeError, ValueError)) as refused:
        getattr(tss_kernels, name)(*arguments)
    with pytest.raises(type(refused.value)) as explained:
        tss_kernels.explain(name, *arguments)
    assert str(explained.value) == str(refused.value)


def test_explain_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="in = 8"):
        tss_kernels.explain("gated_linear", X[:, :5], W, S)
    with pytest.raises(ValueError, match=r"the up map: scores .*\(8, 4\)"):
        tss_kernels.explain("gated_adapter", X, W, S, W.T.contiguous(), S)
    with pytest.raises(ValueError, match="must have shape"):
        tss_kernels.explain("unpack_gates", tss_kernels.pack_gates(S), 100)
    with pytest.raises(TypeError, match="threshold must be a number"):
        tss_kernels.explain("pack_gates", S, "low")


@pytest.mark.parametrize("call", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_that_would_have_to_differentiate(call):
    with pytest.raises(NotImplementedError, match=r"torch\.func transforms .*use torch\.autograd"):
        call()


def tangent_of(call, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(x, x))).tangent


DIFFERENTIATED = {
    "grad": lambda call, x: torch.func.grad(lambda v: call(v).sum())(x),
    "grad over a batch": lambda call, x: torch.func.vmap(torch.func.grad(lambda v: call(v[None]).sum()))(x),
    "vjp": lambda call, x: torch.func.vjp(call, x)[1](torch.ones(3, 4))[0],
    "jacrev": lambda call, x: torch.func.jacrev(call)(x),
    "jvp": lambda call, x: torch.func.jvp(call, (x,), (x,))[1],
    "jacfwd": lambda call, x: torch.func.jacfwd(call)(x),
    "a tangent": tangent_of,
}
BANK = torch.stack([tss_kernels.pack_gates(S)] * 2)
COMPILED = {
    "scores": lambda x: tss_kernels.gated_linear(x, W, S),
    "packed gates": lambda x: tss_kernels.packed_linear(x, W, BANK[0]),
    "many tasks": lambda x: tss_kernels.multi_task_linear(x, W, BANK, torch.zeros(x.shape[0], dtype=torch.int64)),
    "a layer": GatedAdapterLinear(8, 4),
}


@pytest.mark.parametrize("how", DIFFERENTIATED)
@pytest.mark.parametrize("what", COMPILED)
def test_compiled_code_does_not_lose_a_gradient(how, what):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: DIFFERENTIATED[how](COMPILED[what], x), backend="aot_eager")
    with pytest.raises(NotImplementedError, match=r"a gated operation: use torch\.autograd"):
        compiled(X)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "layers",
    [
        lambda: (torch.nn.Linear(8, 8), GatedAdapterLinear(8, 4), GatedAdapter(4, 2)),
        lambda: (GatedAdapter(8, 4, "gelu"), torch.nn.Linear(8, 2)),
    ],
)
def test_an_exported_program_infers_but_does_not_train(strict, layers):
    net = torch.nn.Sequential(*layers())
    program = torch.export.export(net, (X,), strict=strict).module()
    y = program(X)
    torch.testing.assert_close(y, net(X))
    assert y.requires_grad
    with pytest.raises(NotImplementedError, match="exported programs are for inference"):
        y.sum().backward()


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
