"""EWC: a penalty that is zero where the last task ended, grows with distance, and most along what mattered."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.methods.conftest import KINDS, learn, logits, make_batches, start, train
from tss.adapters.checkpointing import evaluation_mode
from tss.methods.base import adapter_weights
from tss.methods.ewc import diagonal_fisher


def test_the_first_task_has_no_penalty_and_the_second_one_once_it_moves(tiny_bart):
    method, handle = start(tiny_bart, "ewc")
    assert set(learn(handle, method, "asc/1", make_batches(1))) == {0.0}
    penalties = learn(handle, method, "asc/2", make_batches(2))
    assert penalties[0] == 0.0
    assert all(penalty > 0 for penalty in penalties[1:])


@pytest.mark.parametrize("kind", list(KINDS))
def test_fisher_is_the_mean_of_squared_gradients_of_single_examples(kind, calm_bart):
    method, handle = start(calm_bart, "ewc")
    method.begin_task(handle, "x/1", KINDS[kind])
    train(handle, method, make_batches(1, kind))
    data = make_batches(2, kind, count=2)
    found = diagonal_fisher(handle, data)
    named = adapter_weights(handle)
    expected = {name: torch.zeros_like(weight) for name, weight in named.items()}
    for batch in data:
        for row in range(6):
            handle.model.zero_grad()
            handle.model(**{key: value[row : row + 1] for key, value in batch.items()}).loss.backward()
            for name, weight in named.items():
                if weight.grad is not None:
                    expected[name] += weight.grad**2 / 12
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-12)
    assert any(value.gt(0).any() for value in found.values())


def test_the_penalty_is_the_sum_of_the_tasks_quadratics_up_to_a_constant(tiny_bart):
    method, handle = start(tiny_bart, "ewc", strength=7.0)
    terms = []
    for seed in (1, 2, 3):
        method.begin_task(handle, f"asc/{seed}", KINDS["classification"])
        train(handle, method, make_batches(seed))
        fisher = diagonal_fisher(handle, make_batches(seed))
        terms.append((fisher, {name: w.detach().clone() for name, w in adapter_weights(handle).items()}))
        method.end_task(handle, f"asc/{seed}", make_batches(seed))
    method.begin_task(handle, "asc/4", KINDS["classification"])
    named = adapter_weights(handle)
    with torch.no_grad():
        for weight in named.values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    penalty = method.penalty(handle, {})
    found = torch.autograd.grad(penalty, list(named.values()))
    for (name, weight), gradient in zip(named.items(), found, strict=True):
        expected = sum(7.0 * fisher[name].double() * (weight.double() - ends[name].double()) for fisher, ends in terms)
        torch.testing.assert_close(gradient.double(), expected.detach(), rtol=1e-3, atol=1e-9)


def test_important_weights_are_held_back_and_the_old_task_changes_less(calm_bart):
    moved, answers = {}, {}
    for name, options in (("ncl", {}), ("ewc", {"strength": 1e7})):
        method, handle = start(copy.deepcopy(calm_bart), name, **options)
        learn(handle, method, "asc/1", make_batches(1), epochs=4)
        before = {key: weight.detach().clone() for key, weight in adapter_weights(handle).items()}
        first = logits(handle, "asc/1", make_batches(1)[0])
        if name == "ewc":
            fisher = torch.cat([method.state()[f"fisher.{key}"].flatten() for key in before])
        learn(handle, method, "asc/2", make_batches(2), epochs=4)
        moved[name] = torch.cat(
            [(weight - before[key]).abs().flatten() for key, weight in adapter_weights(handle).items()]
        )
        answers[name] = (logits(handle, "asc/1", make_batches(1)[0]) - first).abs().mean()
    important = fisher >= fisher[fisher > 0].quantile(0.9)
    ratio = moved["ewc"].detach() / moved["ncl"].detach().clamp(min=1e-12)
    assert ratio[important].median() < 0.5
    assert ratio[important].median() < ratio[(fisher > 0) & ~important].median()
    assert answers["ewc"] < answers["ncl"]


def test_state_comes_back_as_it_was(tiny_bart):
    method, handle = start(tiny_bart, "ewc")
    learn(handle, method, "asc/1", make_batches(1))
    other = type(method)(method.options)
    other.load_state(method.state())
    method.begin_task(handle, "asc/2", KINDS["classification"])
    train(handle, method, make_batches(2))
    with evaluation_mode(handle.model):
        assert other.penalty(handle, {}).item() == method.penalty(handle, {}).item() > 0
    assert len(method.state()) == 2 * len(adapter_weights(handle))


def test_without_data_there_is_no_fisher(tiny_bart):
    method, handle = start(tiny_bart, "ewc")
    method.begin_task(handle, "asc/1", KINDS["classification"])
    with pytest.raises(ValueError, match="got no examples"):
        method.end_task(handle, "asc/1", [])
