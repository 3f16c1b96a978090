"""Gated layers on the CPU as PyTorch's own linear with W * g: what is kept of them, until anything has changed it."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tss_kernels
from tss_kernels import GatedAdapter, GatedAdapterLinear
from tss_kernels.gated_adapter.reference import ACTIVATIONS
from tss_kernels.testing import in_layout

pytest.importorskip("tss_kernels.native", reason="the native backend was not built", exc_type=ImportError)

from tss_kernels.gated_linear import composed

X = torch.randn(6, 12)


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
def test_both_ways_have_the_same_bits(make, dtype, layout, shape, monkeypatch):
    module = make().to(dtype)
    x = in_layout(torch.randn(shape, dtype=dtype), layout)
    ways = []
    of = composed.product
    monkeypatch.setattr(composed, "product", lambda *a: ways.append(1) or of(*a))
    short = results(module, x, False)
    assert ways, "the short way was not taken"
    ways.clear()
    long = results(module, x, True)
    assert not ways
    assert len(short) == len(long) >= 3
    for one, two in zip(short, long, strict=True):
        if layout == "permuted":  # autograd multiplies in another order for an input that lies column by column
            torch.testing.assert_close(one, two)
        else:
            assert torch.equal(one, two)


def assert_fresh(module: GatedAdapterLinear) -> None:
    """The layer computes by the weight and the gates that it has now, forward and backward."""
    x = X.clone().requires_grad_()
    masked = torch.where(module.gate(), module.weight, 0)
    y = module(x)
    torch.testing.assert_close(y, torch.nn.functional.linear(X, masked, module.bias))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ masked)


def alias_of_before(module: GatedAdapterLinear) -> None:
    alias = module.weight.data
    assert_fresh(module)
    alias.neg_()


def fused_step(module: GatedAdapterLinear) -> None:
    module.weight.requires_grad_()
    module(X).sum().backward()
    torch.optim.AdamW([module.weight], lr=10.0, fused=True).step()
    module.weight.requires_grad_(False)


WRITES = {
    "in place": lambda m: torch.no_grad()(m.weight.neg_)(),
    "through .data": lambda m: m.weight.data.neg_(),
    "through a view of .data": lambda m: m.weight.data[1].neg_(),
    "through an alias taken before": alias_of_before,
    "new .data": lambda m: setattr(m.weight, "data", -m.weight.detach()),
    "new .data of another layout": lambda m: setattr(m.weight, "data", in_layout(-m.weight.detach(), "permuted")),
    "another parameter": lambda m: setattr(m, "weight", torch.nn.Parameter(-m.weight.detach(), requires_grad=False)),
    "load_state_dict": lambda m: m.load_state_dict(m.state_dict() | {"weight": -m.weight.detach()}),
    "reset_parameters": lambda m: m.reset_parameters(torch.Generator().manual_seed(9)),
    "a cast and back": lambda m: (m.double(), m.float(), m.weight.data.neg_()),
    "a fused step, which writes past the counters": fused_step,
    "the scores": lambda m: m.scores.data.neg_(),
    "the threshold": lambda m: setattr(m, "threshold", 0.1),
    "the bias": lambda m: m.bias.data.fill_(3.0),
    "no bias": lambda m: setattr(m, "bias", None),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_no_stale_product(write, sealed):
    module = layer()
    module.bias.data.normal_()
    for _ in range(2):
        if sealed:
            module.set_packed(None)
            module.set_packed(module.pack())
        for _ in range(2):
            assert_fresh(module)
        write(module)
        assert_fresh(module)
        if module.bias is None:
            return


def test_sealed_gates_that_are_written_to():
    module = layer()
    module.set_packed(module.pack())
    assert_fresh(module)
    module.packed.bitwise_not_().bitwise_and_(0x0F)
    assert_fresh(module)
    module.set_packed(module.packed.clone())
    assert_fresh(module)


def test_a_weight_shared_with_another_layer_is_masked_anew():
    """Its other owner may write through a `.data` that nobody watches."""
    source = torch.nn.Linear(12, 5)
    module = GatedAdapterLinear.from_linear(source)
    assert_fresh(module)
    source.weight.data.neg_()
    assert_fresh(module)


def test_the_weight_is_masked_once_while_nothing_changes(monkeypatch):
    from tss_kernels.gated_linear import native

    masked = []
    for name in ("masked_by_scores", "masked_by_bits"):
        original = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, original=original: masked.append(1) or original(*a))
    module = layer()
    for _ in range(3):
        module(X).sum().backward()
    with torch.no_grad():
        module(X)
    assert len(masked) == 1
    module.set_packed(module.pack())
    for _ in range(3):
        module(X)
    assert len(masked) == 2


def test_a_step_between_forward_and_backward_changes_no_gradient():
    module, x = layer(), X.clone().requires_grad_()
    expected = results(module, X, False)
    module.zero_grad()
    y = module(x)
    module.scores.data.neg_()
    y.square().sum().backward()
    assert torch.equal(x.grad, expected[1])
    assert torch.equal(module.scores.grad, expected[2])


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


def test_a_change_of_options_is_followed():
    module = layer()
    assert_fresh(module)
    plain, masked = [], []
    for _ in range(2):
        for mask, found in ((True, masked), (False, plain)):
            module.mask_gradient = mask
            found.append(results(module, X, False)[2])
    torch.testing.assert_close(masked[1], plain[1] * (1 - module.importance))
    module.importance = torch.ones(5, 12)
    module.mask_gradient = True
    assert results(module, X, False)[2].eq(0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(X).dtype == torch.bfloat16
    with tss_kernels.use_backend("reference"):
        assert_fresh(module)
    with pytest.raises(ValueError, match="in = 12"):
        module(X[:, :5])
    with pytest.raises(TypeError, match="one dtype"):
        module(X.double())


def test_the_short_way_is_left_where_it_does_not_lead(monkeypatch):
    ways = []
    of = composed.product
    monkeypatch.setattr(composed, "product", lambda *a: ways.append(1) or of(*a))
    module = layer()
    module(X), module(X)
    assert len(ways) == 2
    with torch.autocast("cpu", torch.bfloat16):
        module(X)
    with tss_kernels.use_backend("reference"):
        module(X)
    module.weight.requires_grad_()
    module(X).sum().backward()
    assert module.weight.grad.ne(0).any()
    with Looking():
        module(X)
    module.bfloat16()(X.bfloat16())
    assert len(ways) == 2
    module = layer()
    module(X)
    module.bias = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # PyTorch would broadcast it
    with pytest.raises(ValueError, match=r"\(5,\) but has \(1,\)"):
        module(X)
    module = layer()
    module(X)
    module.importance = torch.ones(1, 12)
    with pytest.raises(ValueError, match=r"\(5, 12\) but has \(1, 12\)"):
        module(X)


def test_inference_mode_keeps_nothing_that_training_could_not_save():
    module = layer()
    module.set_packed(module.pack())
    with torch.inference_mode():
        module(X)
    assert_fresh(module)
    module.set_packed(None)
    with torch.inference_mode():
        module(X)
    assert_fresh(module)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_layer_made_in_inference_mode(sealed):
    with torch.inference_mode():
        module = layer()
        module.set_packed(module.pack() if sealed else None)
        for _ in range(3):
            assert torch.equal(module(X), torch.nn.functional.linear(X, module.weight * module.gate(), module.bias))
            module.weight.neg_()
            module.scores.neg_()


def test_copies_and_files_hold_no_product():
    module = layer()
    module(X)
    twin = copy.deepcopy(module)
    twin.weight.data.neg_()
    assert_fresh(twin)
    assert_fresh(module)
    sizes = []
    for one in (module, layer()):
        file = io.BytesIO()
        torch.save(one, file)
        sizes.append(file.tell())
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert_fresh(loaded)
    assert sizes[0] == sizes[1]


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
