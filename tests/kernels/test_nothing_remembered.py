"""Results are right whatever wrote to a layer's tensors, and however: nothing of a forward pass is remembered."""

from __future__ import annotations

import copy
import io
import threading

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

import tss_kernels
from tss_kernels import GatedAdapter, GatedAdapterLinear, SoftMaskedAdamW
from tss_kernels.testing import in_layout

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
X = torch.randn(6, 12, device=DEVICE)


@pytest.fixture(autouse=True)
def _by(backend):
    """Every backend, and the automatic choice in place of the reference."""
    backend.runs("gated_linear", torch.float32)
    with tss_kernels.use_backend(None if backend == "reference" else backend):
        yield


def layer() -> GatedAdapterLinear:
    torch.manual_seed(0)
    module = GatedAdapterLinear(12, 5, device=DEVICE)
    module.bias.data.normal_()
    return module


def assert_right(module: GatedAdapterLinear) -> None:
    """The layer computes by weight, gates and bias as they are now, forward and backward."""
    x = X.clone().requires_grad_()
    y = module(x)
    gate = module.scores.detach() >= module.threshold if module.packed is None else module.gate()
    masked = torch.where(gate, module.weight.detach(), 0)
    torch.testing.assert_close(y, linear(X, masked, module.bias))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ masked)


def through_numpy(module: GatedAdapterLinear) -> None:
    """Writes that PyTorch does not see."""
    if not module.scores.is_cuda:
        values = module.scores.detach().numpy()
        np.negative(values, out=values)


def through_the_storage(module: GatedAdapterLinear) -> None:
    module.scores.detach().untyped_storage().copy_((-module.scores.detach()).untyped_storage())


def through_dlpack(module: GatedAdapterLinear) -> None:
    torch.from_dlpack(module.scores.detach()).neg_()


def from_another_thread(module: GatedAdapterLinear) -> None:
    thread = threading.Thread(target=lambda: module.scores.detach().neg_())
    thread.start()
    thread.join()


def step_of(make):
    def change(module: GatedAdapterLinear) -> None:
        module(X).sum().backward()
        make([module.scores]).step()

    return change


class Unseen(torch.optim.Optimizer):
    """Writes to its parameters' memory and tells PyTorch nothing."""

    def __init__(self, params) -> None:
        super().__init__(params, {})

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.detach().view(torch.int32).untyped_storage()[3] ^= 0x80  # the sign of the first score


WRITES = {
    "scores in place": lambda m: torch.no_grad()(m.scores.neg_)(),
    "scores through .data": lambda m: m.scores.data.neg_(),
    "scores through a view of .data": lambda m: m.scores.data[2].neg_(),
    "new .data": lambda m: setattr(m.scores, "data", -m.scores.detach()),
    "another parameter": lambda m: setattr(m, "scores", torch.nn.Parameter(-m.scores.detach())),
    "load_state_dict": lambda m: m.load_state_dict(m.state_dict() | {"scores": -m.scores.detach()}),
    "reset_scores": lambda m: m.reset_scores(torch.Generator().manual_seed(9)),
    "NumPy": through_numpy,
    "the storage": through_the_storage,
    "DLPack": through_dlpack,
    "another thread": from_another_thread,
    "SGD": step_of(lambda params: torch.optim.SGD(params, lr=100.0)),
    "SGD foreach": step_of(lambda params: torch.optim.SGD(params, lr=100.0, foreach=True)),
    "fused AdamW, past the counters": step_of(lambda params: torch.optim.AdamW(params, lr=9.0, fused=True)),
    "SoftMaskedAdamW": step_of(lambda params: SoftMaskedAdamW(params, lr=9.0)),
    "an optimizer that tells nothing": step_of(Unseen),
    "a cast and back": lambda m: (m.double(), m.float(), m.scores.data.neg_()),
    "the threshold": lambda m: setattr(m, "threshold", 0.1),
    "the weight in place": lambda m: torch.no_grad()(m.weight.neg_)(),
    "the weight through .data": lambda m: m.weight.data[1].neg_(),
    "the weight in another layout": lambda m: setattr(m.weight, "data", in_layout(-m.weight.detach(), "permuted")),
    "another weight": lambda m: setattr(m, "weight", torch.nn.Parameter(-m.weight.detach(), requires_grad=False)),
    "a loaded weight": lambda m: m.load_state_dict(m.state_dict() | {"weight": -m.weight.detach()}),
    "the bias": lambda m: m.bias.data.fill_(3.0),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writes_are_followed(write, sealed):
    module = layer()
    for _ in range(2):
        module.set_packed(module.pack() if sealed else None)
        for _ in range(2):
            assert_right(module)
        if sealed and write.__name__ == "change":
            return  # sealed scores have no gradient to step by
        module.zero_grad()
        write(module)
        assert_right(module)


def test_sealed_gates_stay_whatever_happens_to_the_scores():
    module = layer()
    module.set_packed(module.pack())
    before = module(X)
    module.scores.data.neg_()
    assert torch.equal(module(X), before)
    module.set_packed(None)
    assert_right(module)
    assert not torch.equal(module(X), before)


def test_an_adapter_follows_both_layers():
    torch.manual_seed(0)
    adapter = GatedAdapter(12, 5).to(DEVICE)
    for write in (lambda: None, lambda: adapter.up.scores.data.neg_(), lambda: adapter.down.weight.data.neg_()):
        write()
        hidden = torch.relu(linear(X, torch.where(adapter.down.gate(), adapter.down.weight, 0), adapter.down.bias))
        expected = X + linear(hidden, torch.where(adapter.up.gate(), adapter.up.weight, 0), adapter.up.bias)
        torch.testing.assert_close(adapter(X), expected)


def test_a_step_between_forward_and_backward_changes_no_gradient():
    module, x = layer(), X.clone().requires_grad_()
    module.importance = torch.rand(5, 12, device=DEVICE)
    masked = torch.where(module.gate(), module.weight, 0)
    y = module(x)
    module.scores.data.neg_()
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ masked)
    expected = (torch.ones_like(y).T @ X) * module.weight * (1 - module.importance)
    torch.testing.assert_close(module.scores.grad, expected)


def test_a_change_of_options_is_followed():
    module = layer()
    module.importance = torch.rand(5, 12, device=DEVICE)
    plain, masked = [], []
    for _ in range(2):
        for mask, found in ((True, masked), (False, plain)):
            module.mask_gradient = mask
            module.zero_grad()
            module(X).sum().backward()
            found.append(module.scores.grad)
    torch.testing.assert_close(masked[1], plain[1] * (1 - module.importance))
    module.mask_gradient, module.importance = True, torch.ones(5, 12, device=DEVICE)
    module.zero_grad()
    module(X).sum().backward()
    assert module.scores.grad.eq(0).all()


@pytest.mark.parametrize("sealed", [False, True])
def test_inference_mode_before_training(sealed):
    module = layer()
    module.set_packed(module.pack() if sealed else None)
    with torch.inference_mode():
        module(X)
    assert_right(module)
    with torch.inference_mode():
        made = layer()
        made.set_packed(made.pack() if sealed else None)
        for _ in range(2):
            torch.testing.assert_close(made(X), linear(X, made.weight * made.gate(), made.bias))
            made.weight.neg_()
            made.scores.neg_()


def test_copies_and_files():
    module = layer()
    module(X)
    twin = copy.deepcopy(module)
    twin.scores.data.neg_()
    assert_right(twin)
    assert_right(module)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = GatedAdapterLinear(12, 5, device=DEVICE)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(X), module(X))
    assert type(module.scores) is torch.nn.Parameter


def test_compiled_code_follows_the_scores():
    torch._dynamo.reset()
    module = layer()
    module(X)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(X), linear(X, torch.where(module.gate(), module.weight, 0), module.bias))
        module.scores.data.neg_()


def test_threads_at_once():
    """Each thread's layer and backend are its own."""
    modules, wrong = [layer() for _ in range(4)], []

    def work(module: GatedAdapterLinear) -> None:
        for _ in range(25):
            module.scores.data.neg_()
            expected = linear(X, torch.where(module.scores.detach() >= 0, module.weight, 0), module.bias)
            if not torch.allclose(module(X), expected, atol=1e-5):
                wrong.append(module)

    threads = [threading.Thread(target=work, args=(module,)) for module in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
