"""Batches whose rows belong to different tasks."""

from __future__ import annotations

import pytest
import torch

import tss
from tss.adapters.task_call import calling
from tss_kernels import modules, multi_task_adapter

from .conftest import NAMES, REPLIES, TOPICS, inputs_of, learn, logits, make_bart, make_batch, make_t5


@pytest.fixture(params=[make_bart, make_t5])
def handle(request):
    """Three sealed generation tasks whose logits differ, two with heads, and one that is being learned."""
    torch.manual_seed(0)
    model = request.param()
    config = tss.AdapterConfig(bottleneck=8, weight_init="signed_constant")
    handle = tss.attach(model, config, tss.TssOptions(score_copy=False)).tss
    for seed, (name, kind) in enumerate(
        {"r1": REPLIES, "r2": REPLIES, "topics": TOPICS, "names": NAMES, "r3": REPLIES}.items()
    ):
        learn(handle, name, kind, seed=seed, seal=name != "r3")
    return handle


def close(one, other, scale=None):
    """Up to rounding of values of this size, the largest of `other` unless given."""
    return torch.allclose(one, other, rtol=0, atol=64 * 2.0**-24 * (scale or other.abs().max().item()))


def test_each_row_answers_as_its_own_task(handle):
    names = ["r2", "r1", "r3", "r1"]
    batch = make_batch(REPLIES)
    mixed = logits(handle.model, batch, names)
    for i, name in enumerate(names):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        assert close(mixed[i], logits(handle.model, row, name)[0])
        others = [logits(handle.model, row, other)[0] for other in {"r1", "r2", "r3"} - {name}]
        assert all(not close(mixed[i], other) for other in others)
    assert handle.active == "r3"
    with handle.using(names):
        assert torch.equal(logits(handle.model, batch), mixed)


def test_a_row_of_the_task_being_learned_has_gradients(handle):
    loss = handle.model(**make_batch(REPLIES), task=["r1", "r3", "r2", "r1"]).loss
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in handle.trainable_parameters()["scores"])


def test_rows_of_sealed_tasks_run_in_one_operation_for_each_site(handle, monkeypatch):
    calls = []
    monkeypatch.setattr(
        modules, "multi_task_adapter", lambda *a, **k: (calls.append(1), multi_task_adapter(*a, **k))[1]
    )
    names, batch = ["r2", "r1", "r2", "r2"], make_batch(REPLIES)
    mixed = logits(handle.model, batch, names)
    assert len(calls) == len(handle.adapters)
    hooks = [layer.register_forward_hook(lambda *_: None) for layer in handle.layers.values()]
    assert close(logits(handle.model, batch, names), mixed)  # layers with hooks are called one by one
    assert len(calls) == len(handle.adapters)
    for hook in hooks:
        hook.remove()


def test_a_row_has_the_same_bits_at_a_site_whatever_else_is_in_the_batch(handle):
    adapter = next(iter(handle.adapters.values()))
    hidden = torch.randn(4, 8, adapter.width, generator=torch.Generator().manual_seed(0))

    def adapted(rows, names):
        with calling(handle.resolve(names)), torch.no_grad():
            return adapter(hidden[rows])

    mixed = adapted([0, 1, 2, 3], ["r1", "r2", "r1", "r2"])
    assert torch.equal(adapted([0, 2], ["r1", "r1"]), mixed[[0, 2]])
    assert torch.equal(adapted([3], ["r2"]), mixed[3:])


def test_beams_and_cache_follow_their_rows(handle):
    names, model = ["r1", "r2", "r3"], handle.model.eval()
    inputs = inputs_of(make_batch(REPLIES, rows=3))
    settings = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    mixed = model.generate(**inputs, task=names, **settings)
    slow = []
    for i, name in enumerate(names):
        row = {key: value[i : i + 1] for key, value in inputs.items()}
        slow.append(model.generate(**row, task=name, use_cache=False, **settings)[0])
    width = mixed.shape[1]
    pad = model.config.pad_token_id
    padded = [torch.nn.functional.pad(ids, (0, width - len(ids)), value=pad) for ids in slow]
    assert torch.equal(mixed, torch.stack(padded))
    row = make_batch(REPLIES, rows=1)
    assert len({tuple(logits(model, row, name).flatten().tolist()) for name in names}) == len(names), "tasks differ"
    assert handle.active == "r3"


def test_heads_of_mixed_rows_share_one_pass(handle, monkeypatch):
    model, names = handle.model, ["topics", "names", "topics", "names"]
    batch = make_batch(TOPICS)
    passes = []
    encoder = model.get_encoder()
    hook = encoder.register_forward_hook(lambda *_: passes.append(1))
    mixed = model(**inputs_of(batch), task=names)
    hook.remove()
    assert len(passes) == 1
    assert mixed.loss is None
    assert [tuple(row.shape) for row in mixed.logits] == [(2,), (8, 3), (2,), (8, 3)]
    model.eval()
    mixed = model(**inputs_of(batch), task=names)
    scale = max(row.abs().max().item() for row in mixed.logits)  # products that nearly cancel round as large ones do
    for i, name in enumerate(names):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        assert close(mixed.logits[i], logits(model, row, name)[0], scale)


def test_losses_of_mixed_rows_are_their_mean(handle):
    model, names = handle.model.eval(), ["topics", "names", "topics"]
    first, second = make_batch(TOPICS, rows=3), make_batch(NAMES, rows=3)
    labels = [first["labels"][0], second["labels"][1], first["labels"][2]]
    mixed = model(**inputs_of(first), labels=labels, task=names)
    alone = [
        model(**{k: v[i : i + 1] for k, v in inputs_of(first).items()}, labels=labels[i][None], task=name).loss
        for i, name in enumerate(names)
    ]
    assert mixed.loss.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="2 labels for 3 rows"):
        model(**inputs_of(first), labels=labels[:2], task=names)


def test_what_rows_cannot_do(handle):
    model, inputs = handle.model, inputs_of(make_batch(TOPICS))
    with pytest.raises(ValueError, match="tasks with and without a head cannot share a batch: r1 would use"):
        model(**inputs, task=["topics", "r1", "topics", "r1"])
    with pytest.raises(ValueError, match="a batch of 4 rows for 3 task names"):
        model(**inputs, decoder_input_ids=inputs["input_ids"], task=["r1", "r2", "r1"])
    with pytest.raises(ValueError, match="one name per row, got"):
        model(**inputs, task=[])
    with pytest.raises(tss.StateError, match="there is no task 'nobody'; the tasks are: r1, r2"):
        model(**inputs, task=["r1", "nobody", "r1", "r1"])
    with pytest.raises(ValueError, match="'topics' is of kind classification and cannot generate text"):
        model.generate(**inputs, task=["topics"] * 4)
    with handle.using("topics"), pytest.raises(ValueError, match="cannot generate text"):
        model.generate(**inputs)
    assert handle.active == "r3"
