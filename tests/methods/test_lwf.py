"""LwF: past answers on new inputs are held to a frozen teacher's."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.methods.conftest import KINDS, learn, logits, make_batches, start, train
from tss.methods.base import adapter_weights
from tss.methods.distillation import divergence
from tss.run.config import TaskSettings

SEQUENCES = [
    ("classification", "classification"),
    ("extraction", "classification"),
    ("generation", "classification"),
    ("generation", "generation"),
    ("classification", "generation"),
]


@pytest.mark.parametrize(("past", "now"), SEQUENCES)
def test_the_loss_is_zero_before_the_first_step_and_grows_with_change(past, now, tiny_bart):
    method, handle = start(tiny_bart, "lwf")
    assert set(learn(handle, method, "x/1", make_batches(1, past), past)) == {0.0}
    # steps so large that answers differ by more than float32 rounds, by which a divergence may fall below 0
    rates = TaskSettings(adapter_lr=0.3, head_lr=0.3)
    penalties = learn(handle, method, "x/2", make_batches(2, now), now, rates=rates)
    assert penalties[0] == 0.0
    assert all(penalty > 0 for penalty in penalties[1:])


def test_the_teacher_is_frozen_and_gets_no_gradient(tiny_bart):
    method, handle = start(tiny_bart, "lwf")
    learn(handle, method, "x/1", make_batches(1))
    method.begin_task(handle, "x/2", KINDS["classification"])
    kept = [weight.clone() for weights in method._teacher for weight in weights]
    live = list(adapter_weights(handle).values())
    assert all(torch.equal(*pair) for pair in zip(kept, live, strict=True))
    assert train(handle, method, make_batches(2))[-1] > 0
    after = [weight for weights in method._teacher for weight in weights]
    assert all(torch.equal(*pair) for pair in zip(kept, after, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(live, after, strict=True))
    assert not any(weight.requires_grad for weight in after)


def test_the_loss_is_that_of_the_past_tasks_own_answers(calm_bart):
    method, handle = start(calm_bart, "lwf", strength=3.0, temperature=2.0)
    learn(handle, method, "x/1", make_batches(1))
    learn(handle, method, "x/2", make_batches(2, "extraction"), "extraction")
    learn(handle, method, "x/3", make_batches(3, "generation"), "generation")
    batch = make_batches(4)[0]
    real = batch["attention_mask"].bool()
    spoken = {**batch, "labels": None}

    def told() -> list[torch.Tensor]:
        ids = batch["input_ids"]
        decoder = torch.cat([torch.full_like(ids[:, :1], 2), ids[:, :-1]], dim=1)
        with handle.using("x/3"), torch.no_grad():
            words = handle.model(**spoken, decoder_input_ids=decoder).logits[real]
        return [logits(handle, "x/1", batch), logits(handle, "x/2", batch)[real], words]

    before = told()
    method.begin_task(handle, "x/4", KINDS["classification"])
    train(handle, method, make_batches(4), rates=TaskSettings(adapter_lr=0.3), epochs=3)
    penalty = method.penalty(handle, batch)
    expected = 0.0
    for old, new in zip(before, told(), strict=True):
        p, q = (old.double() / 2).softmax(-1), (new.double() / 2).softmax(-1)
        expected += 3.0 * 4.0 * (p * (p / q).log()).sum(-1).mean().item()
    assert penalty.item() == pytest.approx(expected, rel=1e-3)


def test_old_answers_on_new_inputs_change_less_than_without(calm_bart):
    drift = {}
    for name, options in (("ncl", {}), ("lwf", {"strength": 100.0})):
        method, handle = start(copy.deepcopy(calm_bart), name, **options)
        learn(handle, method, "x/1", make_batches(1), epochs=4)
        before = logits(handle, "x/1", make_batches(2)[0])
        learn(handle, method, "x/2", make_batches(2), epochs=4)
        drift[name] = (logits(handle, "x/1", make_batches(2)[0]) - before).abs().mean()
    assert drift["lwf"] < drift["ncl"] / 2


def test_the_divergence_is_zero_between_equals_and_positive_between_others():
    a, b = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 5)
    assert divergence(a, a, 2.0) == 0
    assert divergence(a, b, 2.0) > 0
