"""The plain Hugging Face Trainer on an attached model."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import tss

from .conftest import ARCHITECTURES, NAMES, REPLIES, TOPICS, learn, make_batch, snapshot


def rows_of(kind, count=16):
    batch = make_batch(kind, rows=count)
    return [{key: value[i] for key, value in batch.items()} for i in range(count)]


def train(model, kind, folder, optimizer=None, *, save=False, resume=None, **settings):
    arguments = hf.TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=4, learning_rate=0.05, use_cpu=True,
        report_to=[], save_strategy="steps" if save else "no", save_steps=3, logging_steps=1, disable_tqdm=True,
        **settings,
    )  # fmt: skip
    trainer = hf.Trainer(model=model, args=arguments, train_dataset=rows_of(kind), optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("name", ["bart", "t5", "bert", "llama"])
@pytest.mark.parametrize("kind", [TOPICS, NAMES, REPLIES], ids=lambda kind: kind.kind)
def test_it_moves_scores_and_head_alone(name, kind, tmp_path):
    if kind is REPLIES and name == "bert":
        pytest.skip("generation tasks need a language-model head")
    handle = tss.attach(ARCHITECTURES[name][0](), tss.AdapterConfig(bottleneck=4)).tss
    model = handle.model
    learn(handle, "old", TOPICS)
    handle.add_task("new", kind)
    handle.train_task("new")
    before = snapshot(model)
    fingerprint, frozen = handle.fingerprint("old"), handle.frozen_fingerprint()
    trainer = train(model, kind, tmp_path)
    now = model.state_dict()
    moved = {key for key, tensor in before.items() if not torch.equal(tensor, now[key])}
    allowed = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {key for key in moved if key.endswith("scores")}
    assert moved <= allowed
    assert all(key.endswith("scores") or key.startswith("learning.task-new.head.") for key in allowed)
    assert (handle.fingerprint("old"), handle.frozen_fingerprint()) == (fingerprint, frozen)
    assert "eval_loss" in trainer.evaluate(rows_of(kind))
    handle.seal_task(trainer.get_train_dataloader())
    assert handle.tasks["new"].state == "sealed"


@pytest.mark.parametrize("soft_mask", ["gradient", "update"])
def test_full_importance_holds_every_score_there_too(bart, tmp_path, soft_mask):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4), tss.TssOptions(soft_mask=soft_mask)).tss
    bart, shared = handle.model, handle.shared_state()
    ones = {f"importance.{name}": torch.ones_like(layer.scores) for name, layer in handle.layers.items()}
    handle.load_shared_state(shared | ones)
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    before = snapshot(bart)
    if soft_mask == "update":
        with pytest.raises(tss.StateError, match=r"for Trainer: optimizers=\(optimizer, None\)"):
            train(bart, TOPICS, tmp_path)
        train(bart, TOPICS, tmp_path, handle.optimizer(score_lr=0.05, head_lr=0.05))
    else:
        train(bart, TOPICS, tmp_path)
    now = bart.state_dict()
    moved = {key for key, tensor in before.items() if not torch.equal(tensor, now[key])}
    assert moved
    assert all(key.startswith("learning.") for key in moved)


def test_accumulated_gradients_are_the_mean_over_parts(bart, tmp_path):
    """Four rows in two parts give the scores that they give in one."""
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4, weight_init="signed_constant")).tss
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    start = {name: tensor.clone() for name, tensor in handle.learning_state().items()}
    bart = handle.model.eval()
    ends = []
    for size, parts in ((4, 1), (2, 2)):
        handle.load_learning_state(start)
        arguments = hf.TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=size, use_cpu=True, report_to=[],
            gradient_accumulation_steps=parts, save_strategy="no", disable_tqdm=True, max_grad_norm=0,
        )  # fmt: skip
        optimizer = torch.optim.SGD([p for group in handle.trainable_parameters().values() for p in group], lr=1.0)
        trainer = hf.Trainer(model=bart, args=arguments, train_dataset=rows_of(TOPICS, 4), optimizers=(optimizer, None))
        for module in bart.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in (*bart.get_encoder().layers, *bart.get_decoder().layers, bart.get_encoder(), bart.get_decoder()):
            layer.dropout = 0.0
        trainer.train()
        ends.append({name: tensor.clone() for name, tensor in handle.learning_state().items()})
    for name, whole in ends[0].items():
        step = (whole - start[name]).abs().max()
        assert (whole - ends[1][name]).abs().max() <= 1e-3 * step + 2.0**-23
        assert not torch.equal(whole, start[name]) or step == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["bart", "t5", "llama"])
@pytest.mark.parametrize("argument", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_by_its_arguments_changes_nothing(name, argument, tmp_path):
    found = []
    for settings in ({}, {argument: True}):
        handle = tss.attach(ARCHITECTURES[name][0](), tss.AdapterConfig(bottleneck=4)).tss
        handle.add_task("topics", TOPICS)
        handle.train_task("topics")
        train(handle.model, TOPICS, tmp_path, **settings)
        found.append({name: layer.scores.detach().clone() for name, layer in handle.layers.items()})
    plain, checkpointed = found
    assert all(torch.equal(plain[name], scores) for name, scores in checkpointed.items())
