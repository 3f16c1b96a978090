"""What holds for adapters on every architecture."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers as hf

import tss

from .conftest import NAMES, REPLIES, TOPICS, changed, learn, logits, make_batch, snapshot


def test_bypassed_adapters_change_no_bit_and_detach_restores_everything(architecture):
    model, config = architecture
    next(model.parameters()).requires_grad_(False)  # a flag of the user's own has to come back too
    cls, batch, before, first = type(model), make_batch(TOPICS), snapshot(model), logits(model, make_batch(TOPICS))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modules, attributes = [name for name, _ in model.named_modules()], set(vars(model))
    random = torch.get_rng_state()
    handle = tss.attach(model, config)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(p.requires_grad for p in model.parameters())
    assert type(model).__name__ == cls.__name__
    assert isinstance(model, cls)
    assert torch.equal(logits(model, batch), first)
    learn(handle, "topics", TOPICS)
    assert not torch.equal(logits(model, batch, task="topics"), first)
    handle.use(None)
    assert torch.equal(logits(model, batch), first)
    assert handle.detach() is model
    assert type(model) is cls
    assert changed(before, model) == set()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert [name for name, _ in model.named_modules()] == modules
    assert set(vars(model)) == attributes
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(logits(model, batch), first)


def test_a_sealed_task_answers_bit_for_bit_the_same_after_others(architecture):
    model, config = architecture
    handle = tss.attach(model, config)
    learn(handle, "topics", TOPICS, seed=1)
    batch = make_batch(TOPICS)
    first, fingerprint, frozen = (
        logits(model, batch, "topics"),
        handle.fingerprint("topics"),
        handle.frozen_fingerprint(),
    )
    learn(handle, "names", NAMES, seed=2)
    learn(handle, "topics again", TOPICS, seed=3)
    assert torch.equal(logits(model, batch, "topics"), first)
    assert not torch.equal(logits(model, batch, "topics again"), first)
    assert (handle.fingerprint("topics"), handle.frozen_fingerprint()) == (fingerprint, frozen)


def test_learning_moves_scores_and_the_own_head_alone(architecture):
    model, config = architecture
    handle = tss.attach(model, config)
    learn(handle, "topics", TOPICS)
    before = snapshot(model)
    learn(handle, "names", NAMES, seal=False)
    required = {name for name, p in model.named_parameters() if p.requires_grad}
    own = {name for name in model.state_dict() if "tss_adapter" in name and name.endswith("scores")}
    now = model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, now[name])}
    assert moved
    assert moved <= own
    assert required == own | {name for name in model.state_dict() if name.startswith("tss_heads.head1.")}


def test_a_deep_copy_stands_on_its_own(architecture):
    model, config = architecture
    handle = tss.attach(model, config)
    learn(handle, "topics", TOPICS)
    batch = make_batch(TOPICS)
    first = logits(model, batch, "topics")
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    assert twin.tss.model is twin
    learn(twin.tss, "names", NAMES)
    assert torch.equal(logits(twin, batch, "topics"), first)
    assert list(handle.tasks) == ["topics"]
    before = snapshot(model)
    twin.tss.detach()
    assert changed(before, model) == set()
    assert torch.equal(logits(model, batch, "topics"), first)


@pytest.mark.parametrize("gated", [True, False])
def test_precisions(architecture, gated):
    model, config = architecture
    for dtype in (torch.bfloat16, torch.float16):
        lower = copy.deepcopy(model).to(dtype)
        handle = tss.attach(lower, tss.AdapterConfig(bottleneck=4, sites=config.sites, gated=gated))
        handle.add_task("topics", TOPICS)
        handle.train_task("topics")
        before = snapshot(lower)
        loss = lower(**make_batch(TOPICS)).loss
        loss.backward()
        trained = [p for group in handle.trainable_parameters().values() for p in group]
        assert {p.dtype for p in trained} == {p.grad.dtype for p in trained if p.grad is not None} == {torch.float32}
        lower.float().to(dtype)
        assert changed(before, lower) == set()
        handle.seal_task()
        assert torch.isfinite(logits(lower, make_batch(TOPICS)).float()).all()


def test_autocast_keeps_parameters_and_dtypes(architecture):
    model, config = architecture
    handle = tss.attach(model, config)
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    batch = make_batch(TOPICS)
    exact = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert 0 < abs(loss.item() - exact.item()) < 2**-5  # bfloat16 keeps 8 bits of numbers of the order of 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        handle.seal_task([batch])


def test_the_signature_names_task_labels_and_what_the_model_takes(architecture):
    model, config = architecture
    before = list(inspect.signature(model.forward).parameters)
    tss.attach(model, config)
    now = list(inspect.signature(model.forward).parameters)
    assert set(now) == {*before, "task", "labels"}
    assert model.can_generate() == hasattr(model, "generate")


def test_it_compiles_without_graph_breaks(bart):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4))
    learn(handle, "topics", TOPICS)
    learn(handle, "replies", REPLIES)
    batch = make_batch(TOPICS)
    compiled = torch.compile(bart, fullgraph=True, backend="eager")
    for task in ("topics", "replies", None):
        handle.use(task)
        assert torch.equal(logits(compiled, batch), logits(bart, batch))


def test_positional_inputs_and_tuples(bart):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4))
    learn(handle, "topics", TOPICS)
    batch = make_batch(TOPICS)
    named = logits(bart, batch, "topics")
    assert torch.equal(bart(batch["input_ids"], batch["attention_mask"], task="topics").logits, named)
    loss, answer = bart(**batch, return_dict=False)
    assert torch.equal(answer, named)
    assert loss.shape == ()


def test_plain_adapters_start_as_the_identity_and_are_shared(bart):
    batch = make_batch(REPLIES)
    first = logits(bart, batch)
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4, gated=False))
    handle.add_task("replies", REPLIES)
    handle.train_task("replies")
    assert torch.equal(logits(bart, batch), first)
    assert handle.density() == handle.packed() == handle.flipped({}) == {}
    handle.seal_task()
    learn(handle, "more", REPLIES, seal=False)
    with handle.using("replies"):
        assert torch.equal(logits(bart, batch), logits(bart, batch, "more"))
    assert handle.bytes_per_task("replies") == {"gates": 0, "head": 0, "total": 0}
    with pytest.raises(ValueError, match="plain adapters have no importance"):
        handle.seal_task([batch])


def test_save_pretrained_writes_the_original_architecture(bart, tmp_path):
    tss.attach(bart, tss.AdapterConfig(bottleneck=4))
    bart.save_pretrained(tmp_path)
    assert hf.AutoConfig.from_pretrained(tmp_path).architectures == ["BartForConditionalGeneration"]
