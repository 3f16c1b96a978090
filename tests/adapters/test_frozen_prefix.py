"""The layers before the first adapter are skipped where its hidden states are given, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch

import tss
from tss.adapters.frozen_prefix import reuse_states

from .conftest import NAMES, REPLIES, TOPICS, inputs_of, learn, make_bart, make_batch, make_t5

PLAIN = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def attached(model=None, **settings):
    return tss.attach(model or make_bart(**PLAIN), tss.AdapterConfig(bottleneck=4, **settings)).tss


def ragged(kind):
    """A batch whose second row is padded."""
    batch = make_batch(kind)
    batch["attention_mask"][1, 5:] = 0
    batch["input_ids"][1, 5:] = 1
    return batch


@pytest.mark.parametrize("kind", [TOPICS, NAMES, REPLIES], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("gated", [True, False])
def test_loss_and_gradients_are_those_of_the_whole_pass(kind, gated):
    handle = attached(make_bart(**PLAIN).double(), gated=gated)
    learn(handle, "before", REPLIES)
    handle.add_task("task", kind)
    handle.train_task("task")
    handle.head.double() if handle.head is not None else None
    batch = ragged(kind)
    parameters = [p for group in handle.trainable_parameters().values() for p in group]
    states = handle.frozen_prefix.compute(batch)
    whole = handle.model(**batch).loss
    skipped = handle.loss(**batch, prefix_states=states)
    torch.testing.assert_close(skipped, whole)
    gradients = torch.autograd.grad(skipped, parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(whole, parameters))
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_given_states_stand_for_the_layers_before_it():
    handle = attached(sites=r"model\.encoder\.layers\.1\.final_layer_norm|model\.decoder.*final_layer_norm")
    learn(handle, "topics", TOPICS)
    model, batch, ran = handle.model, ragged(TOPICS), []
    for i, layer in enumerate(model.model.encoder.layers):
        layer.fc1.register_forward_hook(lambda *_, i=i: ran.append(i))
    states = handle.frozen_prefix.compute(batch)
    assert ran == [0, 1]
    with handle.using("topics"):
        expected = model(**inputs_of(batch)).logits
        ran.clear()
        with reuse_states(handle.frozen_prefix, states):
            torch.testing.assert_close(model(**inputs_of(batch)).logits, expected)
        assert ran == []
        assert torch.equal(model(**inputs_of(batch)).logits, expected)
        with reuse_states(handle.frozen_prefix, states + 1):
            assert not torch.allclose(model(**inputs_of(batch)).logits, expected)
        with reuse_states(handle.frozen_prefix, None):
            assert torch.equal(model(**inputs_of(batch)).logits, expected)


def test_states_do_not_depend_on_the_task_that_runs():
    handle = attached()
    before = handle.frozen_prefix.compute(ragged(TOPICS))
    learn(handle, "topics", TOPICS)
    with handle.using("topics"):
        assert torch.equal(handle.frozen_prefix.compute(ragged(TOPICS)), before)
        assert handle.active == "topics"


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (make_bart, {}),  # dropout
        (lambda: make_bart(**PLAIN, encoder_layerdrop=0.1), {}),
        (lambda: make_bart(**PLAIN), {"placement": "both"}),
        (lambda: make_bart(**PLAIN), {"sites": r"model\.decoder\.layers\.0\.final_layer_norm"}),
        (lambda: make_bart(**PLAIN), {"sites": r"model\.encoder\.layernorm_embedding|.*\.final_layer_norm"}),
    ],
    ids=["dropout", "layerdrop", "two in a layer", "none in the encoder", "before the layers"],
)
def test_nothing_is_skipped_where_states_can_differ(make, settings):
    assert attached(make(), **settings).frozen_prefix is None


def test_nothing_is_skipped_where_a_layer_goes_on_behind_its_site():
    model = make_t5()
    model.config.dropout_rate = 0.0
    assert attached(model).frozen_prefix.compute(make_batch(TOPICS)) is None
    inner = attached(sites=r"model\.encoder\.layers\.0\.fc1|.*layers\.1\.final_layer_norm")
    assert inner.frozen_prefix.compute(make_batch(TOPICS)) is None


def test_a_copy_of_the_model_skips_in_itself():
    handle = attached()
    learn(handle, "topics", TOPICS)
    assert handle.frozen_prefix is not None
    model = copy.deepcopy(handle.model)
    batch = ragged(TOPICS)
    with model.tss.using("topics"), reuse_states(model.tss.frozen_prefix, model.tss.frozen_prefix.compute(batch) + 1):
        assert all("forward" not in vars(layer) for layer in handle.model.model.encoder.layers)
        assert "forward" in vars(model.model.encoder.layers[0])
    assert "forward" not in vars(model.model.encoder.layers[0])
