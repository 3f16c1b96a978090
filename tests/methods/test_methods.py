"""What holds for every method, and what tells them apart."""

from __future__ import annotations

import pytest
import torch

from tests.methods.conftest import KINDS, RATES, changed, learn, logits, make_batches, start, weights
from tss.adapters import AdapterConfig, PlainOptions, attach
from tss.methods import METHODS
from tss.methods.base import NoOptions
from tss.run.config import TaskSettings


@pytest.fixture(params=list(METHODS))
def learned(request, tiny_bart):
    """A method, its handle with one task learned, and that task's logits."""
    method, handle = start(tiny_bart, request.param)
    learn(handle, method, "asc/first", make_batches(1))
    return method, handle, logits(handle, "asc/first", make_batches(1)[0])


def test_a_later_task_changes_old_answers_exactly_where_nothing_guards_them(learned):
    method, handle, before = learned
    for seed, name in ((2, "asc/second"), (3, "asc/third")):
        learn(handle, method, name, make_batches(seed))
    after = logits(handle, "asc/first", make_batches(1)[0])
    assert torch.equal(after, before) == method.never_forgets


def test_learning_moves_only_what_the_method_trains(learned):
    method, handle, _ = learned
    before = weights(handle)
    method.begin_task(handle, "asc/second", KINDS["classification"])
    groups = handle.trainable_parameters()
    trainable = {id(parameter) for group in groups.values() for parameter in group}
    optimizer = method.make_optimizer(handle, RATES)
    assert {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} == trainable
    begun = weights(handle)
    for batch in make_batches(2):
        handle.model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    now = dict(handle.model.named_parameters())
    moved = changed(begun, now)
    assert any(name in before for name in moved)  # adapters or the backbone, not the head alone
    assert all(id(now[name]) in trainable for name in moved)


def test_the_configured_learning_rates_reach_the_optimizer(learned):
    method, handle, _ = learned
    method.begin_task(handle, "asc/second", KINDS["classification"])
    rates = TaskSettings(score_lr=0.5, adapter_lr=0.25, head_lr=0.125, beta1=0.8, beta2=0.9, eps=1e-4)
    groups = method.make_optimizer(handle, rates).param_groups
    assert [group["lr"] for group in groups[:2]] == [0.5 if method.gated else 0.25, 0.125]
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-4 for group in groups)
    assert all(group["weight_decay"] == 0 for group in groups)


@pytest.mark.parametrize("mask", ["gradient", "none"])
def test_sgd_moves_scores_by_the_rate_times_the_masked_gradient(mask, tiny_bart):
    method, handle = start(tiny_bart, "tss", soft_mask=mask)
    learn(handle, method, "asc/first", make_batches(1))
    method.begin_task(handle, "asc/second", KINDS["classification"])
    optimizer = method.make_optimizer(handle, TaskSettings(optimizer="sgd", score_lr=2.0, head_lr=0.5))
    handle.loss(**make_batches(2)[0]).backward()
    rates = {"scores": 2.0, "head": 0.5}
    before = {name: [p.detach().clone() for p in group] for name, group in handle.trainable_parameters().items()}
    optimizer.step()
    for name, group in handle.trainable_parameters().items():
        for parameter, then in zip(group, before[name], strict=True):
            assert torch.equal(parameter, then - rates[name] * parameter.grad)
    layer = next(iter(handle.layers.values()))
    if mask == "gradient":
        assert layer.importance.max() > 0
        assert layer.mask_gradient


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_say_what_they_are(name):
    cls = METHODS[name]
    assert cls.name == name
    method = cls(cls.options_type())
    assert method.state() == {}
    method.load_state({})


def test_a_method_without_state_refuses_that_of_another():
    with pytest.raises(ValueError, match="ncl has no state of its own, got"):
        METHODS["ncl"](NoOptions()).load_state({"fisher": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("piggyback", {"threshold": 0.0}, "threshold must be a number above 0, got 0.0"),
        ("piggyback", {"mask_scale": 1e-3}, "mask_scale must be a number above 0.005, got 0.001"),
        ("ewc", {"strength": -1.0}, "strength must be a number above 0, got -1.0"),
        ("lwf", {"strength": True}, "strength must be a number above 0, got True"),
        ("lwf", {"temperature": float("inf")}, "temperature must be a number above 0, got inf"),
        ("hat", {"steepness": 1}, "steepness must be a number above 1, got 1"),
        ("hat", {"sparsity": "much"}, "sparsity must be a number above 0, got 'much'"),
    ],
)
def test_options_that_cannot_work_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name].options_type(**options)


@pytest.mark.parametrize("trained", ["shared", "masked", "own", "lora", "backbone"])
def test_what_trains_weights_refuses_adapters_with_gates(trained, tiny_bart):
    with pytest.raises(ValueError, match=rf"trained='{trained}'\) train weights, but AdapterConfig has gated=True"):
        attach(tiny_bart, AdapterConfig(), PlainOptions(trained=trained))
    assert not any(module._forward_hooks for module in tiny_bart.modules())


def test_full_fine_tuning_needs_float32(tiny_bart):
    with pytest.raises(ValueError, match=r"needs it in float32, but .* is torch.bfloat16"):
        start(tiny_bart.bfloat16(), "full")


def test_full_fine_tuning_trains_every_parameter_that_the_task_reads(tiny_bart):
    method, handle = start(tiny_bart, "full")
    before = {name: parameter.detach().clone() for name, parameter in tiny_bart.named_parameters()}
    learn(handle, method, "drg/one", make_batches(1, "generation"), "generation")
    moved = {name for name, parameter in tiny_bart.named_parameters() if not parameter.equal(before[name])}
    unread = {name for name in before if name.endswith("k_proj.bias")}  # softmax ignores what all its inputs share
    assert before.keys() - unread <= moved
