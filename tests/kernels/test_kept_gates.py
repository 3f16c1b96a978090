"""Gates that are kept while the scores do not change: used again then, and never once anything has changed them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.nn.functional import linear

import tss_kernels
from tss_kernels import GatedAdapterLinear, SoftMaskedAdamW
from tss_kernels.backends import why_not
from tss_kernels.gates.scores import Scores

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _bits_are_read():
    obstacle = why_not("triton", "gated_linear", DEVICE, torch.float32)
    if obstacle is not None:
        pytest.skip(obstacle.reason)
    with tss_kernels.use_backend("triton"):
        yield


def layer(threshold: float = 0.0) -> GatedAdapterLinear:
    torch.manual_seed(0)
    return GatedAdapterLinear(12, 5, threshold=threshold, device=DEVICE)


X = torch.randn(3, 12, device=DEVICE)


def known(module: GatedAdapterLinear) -> bool:
    return module.scores.kept_gates(module.threshold) is not None


def assert_fresh(module: GatedAdapterLinear) -> None:
    """The layer computes by the scores that it has now, forward and backward."""
    x = X.clone().requires_grad_()
    y = module(x)
    masked = torch.where(module.scores.detach() >= module.threshold, module.weight, 0)
    torch.testing.assert_close(y, linear(X, masked, module.bias))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ masked)


def flip(scores: torch.Tensor) -> None:
    scores.neg_()


def write_through_alias(module: GatedAdapterLinear) -> None:
    alias = module.scores.data  # taken before the gates are kept
    module(X)
    assert known(module)
    alias[1:4].neg_()


def fused_step(module: GatedAdapterLinear) -> None:
    optimizer = torch.optim.AdamW([module.scores], lr=10.0, fused=True)
    module(X).sum().backward()
    optimizer.step()


def step(module: GatedAdapterLinear, **options) -> None:
    optimizer = torch.optim.SGD([module.scores], lr=100.0, **options)
    module(X).sum().backward()
    optimizer.step()


class Unseen(torch.optim.Optimizer):
    """Writes to its parameters' memory and tells PyTorch nothing."""

    def __init__(self, params) -> None:
        super().__init__(params, {})

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.detach().view(torch.int32).untyped_storage()[3] ^= 0x80  # the sign of the first score


def unseen_step(module: GatedAdapterLinear) -> None:
    version = module.scores._version
    Unseen([module.scores]).step()
    assert module.scores._version == version


CHANGES = {
    "in place without gradient": lambda m: torch.no_grad()(flip)(m.scores),
    "through detach": lambda m: flip(m.scores.detach()),
    "through .data": lambda m: flip(m.scores.data),
    "through a view of .data": lambda m: flip(m.scores.data[2]),
    "through an alias taken before": write_through_alias,
    "new .data": lambda m: setattr(m.scores, "data", -m.scores.detach()),
    "another parameter": lambda m: setattr(m, "scores", Scores(-m.scores.detach())),
    "a plain parameter": lambda m: setattr(m, "scores", torch.nn.Parameter(-m.scores.detach())),
    "the threshold": lambda m: setattr(m, "threshold", 0.1),
    "load_state_dict": lambda m: m.load_state_dict(m.state_dict() | {"scores": -m.scores.detach()}),
    "reset_scores": lambda m: m.reset_scores(torch.Generator().manual_seed(9)),
    "SGD": step,
    "SGD foreach": lambda m: step(m, foreach=True),
    "a fused step, which writes past the counters": fused_step,
    "an optimizer that tells nothing": unseen_step,
    "a cast and back": lambda m: (m.double(), m.float(), flip(m.scores.data)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_stale_gate(change):
    module = layer()
    for _ in range(2):  # twice, so that a change is seen after gates were kept again
        module(X)
        assert known(module)
        before = module.gate().clone()
        change(module)
        if not isinstance(module.scores, Scores):
            assert_fresh(module)
            return
        changed = not torch.equal(module.gate(), before) or module.threshold != 0.0
        assert changed or "reset" in str(change) or module.scores.kept_gates(module.threshold) is None
        assert_fresh(module)


def test_gates_are_kept_while_nothing_changes():
    """Accumulating gradients and evaluating compare the scores once."""
    module = layer()
    compared = []
    scores_compared = tss_kernels.gated_linear.__globals__["forward_operator"]

    def counted(*arguments):
        compared.append(1)
        return scores_compared(*arguments)

    tss_kernels.gated_linear.__globals__["forward_operator"] = counted
    try:
        for _ in range(3):
            module(X).sum().backward()
        with torch.no_grad():
            module(X)
        assert len(compared) == 1
    finally:
        tss_kernels.gated_linear.__globals__["forward_operator"] = scores_compared


def test_kept_and_compared_gates_give_equal_bits():
    module = layer()
    results = []
    for _ in range(2):
        x = X.clone().requires_grad_()
        module.scores.grad = None
        y = module(x)
        y.square().sum().backward()
        results.append((y, x.grad, module.scores.grad))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_gates_of_another_threshold_are_not_these():
    module = layer()
    module(X)
    module.threshold = 0.2
    assert_fresh(module)
    module.threshold = 0.0
    assert_fresh(module)


def test_inference_mode_keeps_nothing_that_training_could_not_save():
    module = layer()
    with torch.inference_mode():
        module(X)
    assert_fresh(module)


def test_copies_and_files_hold_no_gates():
    module = layer()
    module(X)
    twin = copy.deepcopy(module)
    assert isinstance(twin.scores, Scores)
    assert not known(twin)
    torch.no_grad()(flip)(twin.scores)
    assert_fresh(twin)
    assert_fresh(module)
    file = io.BytesIO()
    torch.save(module.scores, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is torch.nn.Parameter
    assert torch.equal(loaded, module.scores)
    assert not vars(loaded)


def test_compiled_code_follows_the_scores():
    torch._dynamo.reset()
    module = layer()
    module(X)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(X), linear(X, torch.where(module.gate(), module.weight, 0), module.bias))
        torch.no_grad()(flip)(module.scores)


def test_no_gates_are_kept_where_scores_are_compared_directly():
    module = layer()
    with tss_kernels.use_backend("reference"):
        module(X)
        assert not known(module)
        assert module.scores.wants_gates() is None


def test_the_optimizer_may_hand_over_the_next_gates():
    module = layer(threshold=0.05)
    assert module.scores.wants_gates() is None  # no threshold is known before the first use
    module(X)
    assert module.scores.wants_gates() == 0.05
    torch.no_grad()(flip)(module.scores)
    packed = tss_kernels.pack_gates(module.scores, 0.05)
    module.scores.keep_gates(0.05, packed)
    assert module.scores.kept_gates(0.05) is packed
    assert_fresh(module)


def test_a_step_of_soft_masked_adamw_leaves_true_gates():
    module = layer()
    optimizer = SoftMaskedAdamW([module.scores], lr=0.5)
    first = module.gate()
    for _ in range(3):
        assert_fresh(module)
        optimizer.step()
        optimizer.zero_grad()
        assert not torch.equal(module.gate(), first)
        assert known(module)
        assert torch.equal(module.scores.kept_gates(0.0), tss_kernels.pack_gates(module.scores))
    assert_fresh(module)


def test_a_step_under_another_backend_makes_gates_be_forgotten():
    module = layer()
    optimizer = SoftMaskedAdamW([module.scores], lr=0.5)
    module(X).sum().backward()
    with tss_kernels.use_backend("reference"):
        optimizer.step()
    assert not known(module)
    assert_fresh(module)


def test_adapters_keep_the_gates_of_both_layers():
    torch.manual_seed(0)
    adapter = tss_kernels.GatedAdapter(12, 5).to(DEVICE)
    first = adapter(X)
    assert known(adapter.down)
    assert known(adapter.up)
    assert torch.equal(adapter(X), first)
    torch.no_grad()(flip)(adapter.up.scores)
    hidden = torch.relu(linear(X, torch.where(adapter.down.gate(), adapter.down.weight, 0), adapter.down.bias))
    torch.testing.assert_close(
        adapter(X), X + linear(hidden, torch.where(adapter.up.gate(), adapter.up.weight, 0), adapter.up.bias)
    )
