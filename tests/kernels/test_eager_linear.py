"""Gated layers in eager mode on the CPU: PyTorch's own linear with W * g, in few calls of Python."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import tss_kernels
from tss_kernels import GatedAdapter, GatedAdapterLinear
from tss_kernels.gated_adapter.reference import ACTIVATIONS
from tss_kernels.testing import in_layout

pytest.importorskip("tss_kernels.backends.native", reason="the native backend was not built", exc_type=ImportError)

from tss_kernels.gated_adapter import api as adapter_api
from tss_kernels.gated_linear import api

X = torch.randn(6, 12)


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """One entry for each layer or adapter that goes the way tested here."""
    ways, of = [], api.composes
    for module in (api, adapter_api):
        monkeypatch.setattr(module, "composes", lambda *a: of(*a) and not ways.append(1))
    return ways


class Looking(TorchDispatchMode):
    """Looks on and changes nothing: the registered operators run, as for a compiler."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def layer(**options) -> GatedAdapterLinear:
    torch.manual_seed(0)
    module = GatedAdapterLinear(12, 5, **options)
    module.importance = torch.rand(5, 12)
    return module


def results(module: torch.nn.Module, x: torch.Tensor, by_operator: bool) -> list[torch.Tensor]:
    """Value and gradients, in the short way or by the registered operators."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    if by_operator:
        with Looking():
            y = module(x)
            y.square().sum().backward()
    else:
        y = module(x)
        y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [layer, *(partial(GatedAdapter, 12, 5, name) for name in ACTIVATIONS)])
@pytest.mark.parametrize("shape", [(6, 12), (2, 3, 12), (0, 12), (1, 12)])
def test_both_ways_have_the_same_bits(make, dtype, layout, shape, taken):
    module = make().to(dtype)
    x = in_layout(torch.randn(shape, dtype=dtype), layout)
    short = results(module, x, False)
    assert taken, "the short way was not taken"
    taken.clear()
    long = results(module, x, True)
    assert not taken
    assert len(short) == len(long) >= 3
    for one, two in zip(short, long, strict=True):
        if layout == "permuted":  # autograd multiplies in another order for an input that lies column by column
            torch.testing.assert_close(one, two)
        else:
            assert torch.equal(one, two)


def test_a_weight_written_between_forward_and_backward_is_an_error():
    module = layer()
    y = module(X)
    with torch.no_grad():
        module.weight.neg_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_accumulate_and_come_twice():
    module = layer()
    module(X).sum().backward()
    once = module.scores.grad.clone()
    y = module(X).sum()
    y.backward(retain_graph=True)
    y.backward()
    torch.testing.assert_close(module.scores.grad, 3 * once)
    (again,) = torch.autograd.grad(module(X).sum(), module.scores, create_graph=True)
    assert torch.equal(again, once)


def test_the_short_way_is_left_where_it_does_not_lead(taken):
    module = layer()
    module(X), module(X)
    assert len(taken) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert module(X).dtype == torch.bfloat16
    with tss_kernels.use_backend("reference"):
        module(X)
    module.weight.requires_grad_()
    module(X).sum().backward()
    assert module.weight.grad.ne(0).any()
    with Looking():
        module(X)
    module.bfloat16()(X.bfloat16())
    assert len(taken) == 2
    module = layer()
    module.bias = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # PyTorch would broadcast it
    with pytest.raises(ValueError, match=r"\(5,\) but has \(1,\)"):
        module(X)
    module = layer()
    module.importance = torch.ones(1, 12)
    with pytest.raises(ValueError, match=r"\(5, 12\) but has \(1, 12\)"):
        module(X)
    with pytest.raises(ValueError, match="in = 12"):
        layer()(X[:, :5])
    with pytest.raises(TypeError, match="one dtype"):
        layer()(X.double())


def frames(module: torch.nn.Module, x: torch.Tensor) -> list[str]:
    """The functions of Python that a warm forward pass calls."""
    called: list[str] = []
    module(x)
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_qualname) if event == "call" else None)
    try:
        module(x)
    finally:
        sys.setprofile(None)
    return called


@pytest.mark.parametrize("sealed", [False, True])
def test_calls_of_python_in_a_layer(sealed, taken):
    module = layer()
    module.set_packed(module.pack() if sealed else None)
    counted = [name for name in frames(module, X) if "<lambda>" not in name]  # the fixture's
    assert taken
    assert len(counted) <= 8, counted


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_calls_of_python_in_an_adapter(activation, taken):
    counted = [name for name in frames(GatedAdapter(12, 5, activation), X) if "<lambda>" not in name]
    assert taken
    assert len(counted) <= 14, counted


@pytest.mark.parametrize("shape", [(12,), (2, 12)])
def test_second_derivatives_of_the_input_are_pytorchs(shape):
    """Products of PyTorch's own are differentiated as often as one likes; the scores' gradient once."""
    module, x = layer(), torch.randn(shape, requires_grad=True)
    module.scores.requires_grad_(False)
    if len(shape) == 1:
        assert module(x).shape == (5,)
        return
    dy = torch.ones(2, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x), x, dy, create_graph=True)
    dx.sum().backward()
    torch.testing.assert_close(dy.grad, torch.ones_like(x) @ torch.where(module.gate(), module.weight, 0).T)
    module.scores.requires_grad_()
    (dscores,) = torch.autograd.grad(module(x), module.scores, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dscores.sum().backward()


def test_the_gradient_that_autograd_passes_is_not_written_to():
    layer, x, seen = GatedAdapterLinear(8, 4, bias=False), torch.randn(3, 8), []
    y = layer(x)
    y.grad_fn.register_hook(lambda inputs, outputs: seen.extend(one for one in inputs if one is not None))
    y.sum().backward()
    expected = torch.ones(3, 4).T @ x
    torch.testing.assert_close(next(one if one.shape == (4, 8) else one.T for one in seen), expected)
    torch.testing.assert_close(layer.scores.grad, expected * layer.weight)


@pytest.mark.parametrize("masked", [False, True])
def test_batched_gradients(masked):
    torch.manual_seed(0)
    x, weight, scores = torch.randn(3, 8), torch.randn(4, 8), torch.randn(4, 8)
    importance = torch.rand(4, 8) if masked else None

    def product(scores: torch.Tensor) -> torch.Tensor:
        return tss_kernels.gated_linear(x, weight, scores, importance=importance).sum(0)

    one, two = (torch.autograd.functional.jacobian(product, scores, vectorize=batched) for batched in (False, True))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("early", [False, True])
def test_a_graph_made_by_make_fx_computes_the_product(early):
    weight, (x, scores), others = torch.randn(4, 8), torch.randn(2, 4, 8), torch.randn(4, 8)
    graph = make_fx(lambda x, scores: tss_kernels.gated_linear(x, weight, scores), pre_dispatch=early)(x, scores)
    assert torch.equal(graph(x, others), tss_kernels.gated_linear(x, weight, others))
