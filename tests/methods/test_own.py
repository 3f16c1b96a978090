"""ONE and LoRA: everything that a task trains is its own."""

from __future__ import annotations

import copy

import pytest
import torch

import tss
from tests.methods.conftest import changed, learn, logits, make_batches, start, weights

OWN = ["one", "lora"]


@pytest.mark.parametrize("name", OWN)
def test_earlier_tasks_are_bit_identical_and_their_kept_weights_never_move(name, tiny_bart):
    method, handle = start(tiny_bart, name)
    backbone = {key: value for key, value in weights(handle).items() if key.startswith("backbone.")}
    batch, answers = make_batches(9)[0], {}
    for seed in (1, 2, 3):
        learn(handle, method, f"asc/{seed}", make_batches(seed))
        answers[f"asc/{seed}"] = logits(handle, f"asc/{seed}", batch), handle.fingerprint(f"asc/{seed}")
    for task, (expected, fingerprint) in answers.items():
        assert torch.equal(logits(handle, task, batch), expected)
        assert handle.fingerprint(task) == fingerprint
    assert len({fingerprint for _, fingerprint in answers.values()}) == 3
    assert not changed(backbone, weights(handle))


@pytest.mark.parametrize("name", [*OWN, "supsup", "piggyback"])
def test_what_was_learned_before_makes_no_difference(name, calm_bart):
    answers = []
    for before in ([5], [3, 4]):
        method, handle = start(copy.deepcopy(calm_bart), name)
        for seed in before:
            learn(handle, method, f"asc/{seed}", make_batches(seed))
        learn(handle, method, "asc/last", make_batches(1))
        answers.append(logits(handle, "asc/last", make_batches(1)[0]))
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", OWN)
def test_rows_of_several_tasks_run_each_on_its_own(name, tiny_bart):
    method, handle = start(tiny_bart, name)
    for seed in (1, 2):
        learn(handle, method, f"asc/{seed}", make_batches(seed))
    batch = make_batches(3)[0]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    names = ["asc/1", "asc/2", "asc/2", "asc/1", "asc/1", "asc/2"]
    with torch.no_grad():
        mixed = handle.model(**inputs, task=names).logits
    for i, task in enumerate(names):
        torch.testing.assert_close(mixed[i], logits(handle, task, batch)[i])


@pytest.mark.parametrize("name", OWN)
def test_a_task_being_learned_and_sealed_ones_come_back_from_a_folder(name, tiny_bart, tmp_path):
    fresh = copy.deepcopy(tiny_bart)
    method, handle = start(tiny_bart, name)
    learn(handle, method, "asc/1", make_batches(1))
    method.begin_task(handle, "asc/2", handle.tasks["asc/1"].kind)
    with torch.no_grad():
        for weight in handle.trainable_parameters()["scores"]:
            weight.add_(0.01)
    handle.save(tmp_path / "saved")
    loaded = tss.load(fresh, tmp_path / "saved").tss
    batch = make_batches(1)[0]
    for task in ("asc/1", "asc/2"):
        assert torch.equal(logits(loaded, task, batch), logits(handle, task, batch))
    assert handle.bytes_per_task("asc/1") == loaded.bytes_per_task("asc/1")
    trained = sum(weight.numel() for weight in handle.trainable_parameters()["scores"])
    assert handle.bytes_per_task("asc/1")["gates"] == 4 * trained
    handle.abandon()
    learn(handle, method, "asc/3", make_batches(3))
    assert torch.equal(logits(loaded, "asc/1", batch), logits(handle, "asc/1", batch))
