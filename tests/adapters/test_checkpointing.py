"""Gradient checkpointing: layers that run again in the backward pass run as the task of their forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tss
from tss.adapters.checkpointing import evaluation_mode
from tss.adapters.task_call import calling

from .conftest import ARCHITECTURES, REPLIES, TOPICS, learn, make_bart, make_batch

FORMS = [{"use_reentrant": False}, {"use_reentrant": True}]


def gradients(model, batch, *, backward_under=None):
    """Score gradients of "topics" in training mode, with dropout; the backward pass runs with another task active."""
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    with model.tss.using("topics"):
        loss = model(**batch).loss
    model.tss.use(backward_under)
    loss.backward()
    return [p.grad.clone() for p in model.tss.trainable_parameters()["scores"]]


@pytest.fixture(params=[name for name in ARCHITECTURES if name != "regex"])
def learning(request):
    """A model with a sealed task "old" that learns "topics", and the gradients without checkpointing."""
    handle = tss.attach(ARCHITECTURES[request.param][0](), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "old", TOPICS)
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    return handle.model, gradients(handle.model, make_batch(TOPICS))


def assert_same(found, expected, form):
    # The reentrant form sums the branches of the graph in another order; the other one does what plain autograd does.
    rounding = 2.0**-20 if form["use_reentrant"] else 0.0
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        assert (one - other).abs().max() <= rounding * other.abs().max()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backward_under", [None, "old", "topics"])
def test_gradients_are_those_without_checkpointing(learning, form, backward_under):
    model, expected = learning
    model.gradient_checkpointing_enable(form)
    assert_same(gradients(model, make_batch(TOPICS), backward_under=backward_under), expected, form)
    assert_same(gradients(copy.deepcopy(model), make_batch(TOPICS)), expected, form)
    model.gradient_checkpointing_disable()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("form", FORMS)
def test_checkpointing_that_was_on_before_attaching(form):
    results = []
    for on in (False, True):
        model = make_bart()
        if on:
            model.gradient_checkpointing_enable(form)
        functions = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
        handle = tss.attach(model, tss.AdapterConfig(bottleneck=4)).tss
        handle.add_task("topics", TOPICS)
        handle.train_task("topics")
        results.append(gradients(handle.model, make_batch(TOPICS)))
        handle.detach()
        assert [vars(module).get("_gradient_checkpointing_func") for module in model.modules()] == functions
    assert_same(results[1], results[0], form)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reentrant_checkpointing_needs_no_inputs_that_require_gradients(learning):
    """As in releases of transformers that do not make the embeddings require gradients by themselves."""
    model, expected = learning
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.disable_input_require_grads()
    assert_same(gradients(model, make_batch(TOPICS)), expected, {"use_reentrant": True})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_two_forward_passes_of_different_tasks_before_one_backward(bart):
    """The plain adapter is shared by all tasks, so its gradient is the sum of both passes, in whatever order."""
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4, gated=False)).tss
    learn(handle, "old", TOPICS)
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    found, bart = [], handle.model
    for on in (False, True):
        if on:
            bart.gradient_checkpointing_enable()
        bart.train()
        bart.zero_grad()
        torch.manual_seed(1)
        losses = [bart(**make_batch(TOPICS, seed=i), task=task).loss for i, task in enumerate(("old", "topics"))]
        handle.use(None)
        sum(losses).backward()
        found.append([p.grad.clone() for p in handle.trainable_parameters()["scores"]])
        handle.use("topics")
    assert_same(found[1], found[0], {"use_reentrant": True})


def evaluated(model, batch):
    """The loss without gradients, and score gradients of a backward pass after evaluation mode has ended."""
    model.train()
    model.zero_grad()
    with model.tss.using("topics"), evaluation_mode(model):
        with torch.no_grad():
            without = model.tss.loss(**batch)
        loss = model.tss.loss(**batch)
    loss.backward()
    assert without.equal(loss.detach())
    return [p.grad.clone() for p in model.tss.trainable_parameters()["scores"]]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("form", FORMS)
def test_evaluation_mode_keeps_checkpointing_and_has_no_dropout(learning, form, monkeypatch):
    model, _ = learning
    expected = evaluated(model, make_batch(TOPICS))
    made = []

    def counted(run, *args, **kwargs):
        made.append(run)
        return checkpoint(run, *args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    model.gradient_checkpointing_enable(form)
    assert_same(evaluated(model, make_batch(TOPICS)), expected, form)
    assert made
    assert not any("forward" in vars(module) for module in model.modules())
    model.gradient_checkpointing_disable()


def test_own_checkpointing_without_a_task_in_the_backward_pass_is_refused(bart):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4)).tss
    handle.add_task("replies", REPLIES)
    handle.train_task("replies")
    hidden = torch.randn(2, 3, 16, requires_grad=True)
    layer = bart.get_encoder().layers[0]

    def loss():
        return checkpoint(lambda x: layer(x, None).sum(), hidden, use_reentrant=True)

    with calling(handle.resolve("replies")):
        outside = loss()
    with pytest.raises(tss.StateError, match=r"runs again in the backward pass with no active task while 'replies'"):
        outside.backward()
