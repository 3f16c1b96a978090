"""The plain Hugging Face Trainer on an attached model."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import tss

from .conftest import ARCHITECTURES, NAMES, REPLIES, TOPICS, learn, logits, make_batch, snapshot


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


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        (tss.Classification(labels=("yes", "no")), {}, r"settings of the task: labels \['no', 'yes'\] there"),
        (TOPICS, {"threshold": 0.05}, r"settings of the adapters: threshold 0\.0 there, 0\.05 here"),
        (TOPICS, {"soft_mask": "none"}, "settings of training: soft_mask 'gradient' there, 'none' here"),
    ],
    ids=["order of labels", "adapters", "training"],
)
def test_resuming_with_other_settings_is_refused(kind, config, says, tmp_path):
    def attached(kind, soft_mask="gradient", **config):
        model = tss.attach(
            ARCHITECTURES["bert"][0](), tss.AdapterConfig(bottleneck=4, **config), tss.TssOptions(soft_mask=soft_mask)
        )
        model.tss.add_task("new", kind)
        model.tss.train_task("new")
        return model

    train(attached(TOPICS), TOPICS, tmp_path, save=True)
    other = attached(kind, **config)
    scores = snapshot(other)
    with pytest.raises(tss.StateError, match=says):
        train(other, TOPICS, tmp_path, resume=True)
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in scores.items())


def test_resuming_without_the_sealed_tasks_of_a_checkpoint_is_refused(tmp_path):
    """The next checkpoint would not have them, and may replace this one."""
    make = ARCHITECTURES["bert"][0]
    handle = tss.attach(make(), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "first", TOPICS)
    handle.add_task("new", TOPICS)
    handle.train_task("new")
    train(handle.model, TOPICS, tmp_path, save=True)
    fresh = tss.attach(make(), tss.AdapterConfig(bottleneck=4))
    fresh.tss.add_task("new", TOPICS)
    fresh.tss.train_task("new")
    with pytest.raises(tss.StateError, match=r"beside the sealed task 'first', .* tss\.load\(backbone, folder\)"):
        train(fresh, TOPICS, tmp_path, resume=True)
    loaded = tss.load(make(), tmp_path / "checkpoint-3")
    train(loaded, TOPICS, tmp_path, resume=True)
    assert list(loaded.tss.tasks) == ["first", "new"]


@pytest.mark.parametrize("kind", [TOPICS, REPLIES], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("name", ["bart", "t5", "llama"])
def test_a_trainer_made_for_one_task_accumulates_rightly_for_the_next(name, kind, tmp_path):
    """Whatever task was active when it was made; the batches of a step have different numbers of labels."""
    make = ARCHITECTURES[name][0]
    rows = rows_of(kind, 4)
    if kind is REPLIES:
        for i, row in enumerate(rows):
            row["labels"][: 2 * i] = -100
    ends = []
    for size, parts in ((4, 1), (1, 4)):
        handle = tss.attach(make(), tss.AdapterConfig(bottleneck=4, weight_init="signed_constant")).tss
        learn(handle, "first", TOPICS if kind is REPLIES else REPLIES)
        for module in handle.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for key in ("dropout", "attention_dropout", "activation_dropout"):
                if isinstance(getattr(module, key, None), float):
                    setattr(module, key, 0.0)
        handle.add_task("next", kind)
        arguments = hf.TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=size, use_cpu=True, report_to=[],
            gradient_accumulation_steps=parts, save_strategy="no", disable_tqdm=True, max_grad_norm=0,
        )  # fmt: skip
        trainer = hf.Trainer(model=handle.model, args=arguments, train_dataset=rows)
        handle.train_task("next")
        start = {key: tensor.clone() for key, tensor in handle.learning_state().items()}
        parameters = [p for group in handle.trainable_parameters().values() for p in group]
        trainer.optimizer = torch.optim.SGD(parameters, lr=1.0)
        if name == "llama" and kind is TOPICS:  # it would count the labels that shifting leaves, none of one row
            with pytest.raises(ValueError, match="create a Trainer after train_task"):
                trainer.train()
            return
        trainer.train()
        ends.append({key: tensor - start[key] for key, tensor in handle.learning_state().items()})
    for key, whole in ends[0].items():
        assert (whole - ends[1][key]).abs().max() <= 1e-3 * whole.abs().max() + 2.0**-22, key
    assert any(step.any() for step in ends[0].values())


@pytest.mark.parametrize("backbone", [hf.BertForPreTraining, hf.BertForQuestionAnswering])
def test_evaluation_has_a_loss_whatever_other_labels_the_backbone_takes(backbone, tmp_path):
    config = ARCHITECTURES["bert"][0]().config
    handle = tss.attach(backbone(config), tss.AdapterConfig(bottleneck=4)).tss
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    trainer = train(handle.model, TOPICS, tmp_path)
    assert trainer.label_names == ["labels"]
    assert "eval_loss" in trainer.evaluate(rows_of(TOPICS))


def test_after_mixed_precision_answers_come_back_bit_for_bit(tmp_path):
    handle = tss.attach(ARCHITECTURES["bart"][0](), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "old", TOPICS)
    batch = make_batch(TOPICS)
    before = logits(handle.model, batch, "old")
    handle.add_task("new", TOPICS)
    handle.train_task("new")
    trainer = train(handle.model, TOPICS, tmp_path, bf16=True)
    handle.seal_task(trainer.get_train_dataloader())
    handle.model.eval()
    assert not torch.equal(logits(handle.model, batch, "old"), before)
    trainer.accelerator.unwrap_model(handle.model, keep_fp32_wrapper=False)
    assert torch.equal(logits(handle.model, batch, "old"), before)


@pytest.mark.parametrize(
    "backbone",
    [
        hf.BertForSequenceClassification, hf.BertForTokenClassification, hf.BertForMaskedLM,
        hf.GPT2ForSequenceClassification, hf.LlamaForCausalLM, hf.BartForConditionalGeneration,
    ],
)  # fmt: skip
def test_evaluating_the_original_model_gives_its_own_loss(backbone, tmp_path):
    config = {"Bert": "bert", "GPT2": "gpt2", "Llam": "llama", "Bart": "bart"}[backbone.__name__[:4]]
    config = ARCHITECTURES[config][0]().config
    config.pad_token_id = 1
    torch.manual_seed(0)
    alone = backbone(config).eval()
    kind = TOPICS if "Sequence" in backbone.__name__ else NAMES if "Token" in backbone.__name__ else REPLIES
    rows = rows_of(kind, 5)
    if "Token" in backbone.__name__:
        rows = [{**row, "labels": row["labels"] % 2} for row in rows]
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True
    )
    expected = hf.Trainer(model=alone, args=arguments).evaluate(rows)["eval_loss"]
    model = tss.attach(alone, tss.AdapterConfig(bottleneck=4)).eval()
    model.tss.use(None)
    # A mean over batches of each one's mean, or over all labels, as the backbone's own loss is counted.
    found = hf.Trainer(model=model, args=arguments).evaluate(rows)["eval_loss"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_rows_of_several_tasks_are_divided_by_the_labels_of_the_whole_step():
    handle = tss.attach(ARCHITECTURES["bert"][0](), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "one", TOPICS)
    learn(handle, "two", TOPICS, seed=1)
    batch = make_batch(TOPICS)
    mean = handle.model(**batch, task=["one", "two", "two", "one"]).loss
    part = handle.model(**batch, task=["one", "two", "two", "one"], num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(part, mean / 2)


def test_a_checkpoint_that_was_cast_or_asks_for_other_beams_is_taken(tmp_path):
    def attached(kind):
        model = tss.attach(ARCHITECTURES["bart"][0](), tss.AdapterConfig(bottleneck=4))
        model.tss.add_task("new", kind)
        model.tss.train_task("new")
        return model

    state = attached(REPLIES).state_dict()
    half = {key: tensor.half() for key, tensor in state.items()}
    attached(tss.Generation(num_beams=1, max_new_tokens=7)).load_state_dict(half)
    key = next(key for key in half if key.endswith("about"))
    with pytest.raises(tss.StateError, match="cannot be read"):
        attached(REPLIES).load_state_dict({**half, key: torch.zeros(3)})


def test_a_model_class_without_source_is_attached_to():
    namespace = {"BartForConditionalGeneration": hf.BartForConditionalGeneration}
    exec(
        "class Mine(BartForConditionalGeneration):\n"
        "    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):\n"
        "        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)",
        namespace,
    )
    model = tss.attach(namespace["Mine"](ARCHITECTURES["bart"][0]().config), tss.AdapterConfig(bottleneck=4)).eval()
    batch = make_batch(REPLIES)
    mean = model(**batch, task=None).loss
    torch.testing.assert_close(model(**batch, task=None, num_items_in_batch=64).loss, mean / 2)
