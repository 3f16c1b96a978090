"""What holds for adapters on every architecture."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import transformers as hf

import tss

from .conftest import NAMES, REPLIES, TOPICS, changed, learn, logits, make_bart, make_batch, snapshot


def test_bypassed_adapters_change_no_bit_and_detach_restores_everything(architecture):
    backbone, config = architecture
    next(backbone.parameters()).requires_grad_(False)  # a flag of the user's own has to come back too
    cls, batch, before = type(backbone), make_batch(TOPICS), snapshot(backbone)
    first = logits(backbone, batch)
    flags = {name: p.requires_grad for name, p in backbone.named_parameters()}
    modules, attributes = [name for name, _ in backbone.named_modules()], set(vars(backbone))
    random = torch.get_rng_state()
    model = tss.attach(backbone, config)
    assert torch.equal(torch.get_rng_state(), random)
    assert isinstance(model, hf.PreTrainedModel)
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model, batch), first)
    learn(model.tss, "topics", TOPICS)
    assert not torch.equal(logits(model, batch, task="topics"), first)
    assert torch.equal(logits(backbone, batch), first)  # called itself, the backbone is what it was
    model.tss.use(None)
    assert torch.equal(logits(model, batch), first)
    assert model.tss.detach() is backbone
    assert type(backbone) is cls
    assert changed(before, backbone) == set()
    assert {name: p.requires_grad for name, p in backbone.named_parameters()} == flags
    assert [name for name, _ in backbone.named_modules()] == modules
    assert set(vars(backbone)) == attributes
    assert not any(module._forward_hooks for module in backbone.modules())
    assert torch.equal(logits(backbone, batch), first)


def test_a_sealed_task_answers_bit_for_bit_the_same_after_others(architecture):
    model = tss.attach(*architecture)
    handle = model.tss
    learn(handle, "topics", TOPICS, seed=1)
    batch = make_batch(TOPICS)
    first, print_, frozen = logits(model, batch, "topics"), handle.fingerprint("topics"), handle.frozen_fingerprint()
    learn(handle, "names", NAMES, seed=2)
    learn(handle, "topics again", TOPICS, seed=3)
    assert torch.equal(logits(model, batch, "topics"), first)
    assert not torch.equal(logits(model, batch, "topics again"), first)
    assert (handle.fingerprint("topics"), handle.frozen_fingerprint()) == (print_, frozen)
    handle.verify()


def test_learning_moves_scores_and_the_own_head_alone(architecture):
    model = tss.attach(*architecture)
    learn(model.tss, "topics", TOPICS)
    before = snapshot(model)
    learn(model.tss, "names", NAMES, seal=False)
    required = {name for name, p in model.named_parameters() if p.requires_grad}
    own = {name for name in model.state_dict() if name.startswith("adapters.") and name.endswith("scores")}
    now = model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, now[name])}
    assert moved
    assert moved <= own
    assert required == own | {name for name in now if name.startswith("learning.task-names.head.")}


def test_a_sealed_task_is_no_state_that_anything_can_reach(architecture):
    model = tss.attach(*architecture)
    learn(model.tss, "topics", TOPICS)
    batch = make_batch(TOPICS)
    first = logits(model, batch, "topics")
    assert not any("topics" in name or name.startswith("learning.") for name in model.state_dict())
    zeros = {n: torch.zeros_like(t) if not n.startswith("backbone.") else t for n, t in model.state_dict().items()}
    scores = {name for name in zeros if name.endswith(("weight", "bias")) and name.startswith("adapters.")}
    model.load_state_dict(zeros | {name: model.state_dict()[name] for name in scores})
    assert torch.equal(logits(model, batch, "topics"), first)
    model.tss.verify()


def test_two_equal_calls_of_an_evaluating_model_agree(architecture):
    """transformers' models come in eval mode, and a new head takes that mode over."""
    backbone, config = architecture
    backbone.config.classifier_dropout = 0.5
    model = tss.attach(backbone.eval(), config)
    model.tss.add_task("topics", TOPICS)
    model.tss.train_task("topics")
    batch = make_batch(TOPICS)
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    assert not torch.equal(model.train()(**batch).logits, model(**batch).logits)


def test_a_deep_copy_and_a_pickle_stand_on_their_own(architecture):
    model = tss.attach(*architecture)
    learn(model.tss, "topics", TOPICS)
    batch = make_batch(TOPICS)
    first = logits(model, batch, "topics")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert twin.tss.model is twin
        assert twin.tss.active == "topics"
        learn(twin.tss, "names", NAMES)
        assert torch.equal(logits(twin, batch, "topics"), first)
        assert list(model.tss.tasks) == ["topics"]
        before = snapshot(model)
        twin.tss.detach()
        assert changed(before, model) == set()
        assert torch.equal(logits(model, batch, "topics"), first)


@pytest.mark.parametrize("gated", [True, False])
def test_precisions(architecture, gated):
    backbone, config = architecture
    for dtype in (torch.bfloat16, torch.float16):
        lower = copy.deepcopy(backbone).to(dtype)
        model = tss.attach(lower, tss.AdapterConfig(bottleneck=4, sites=config.sites, gated=gated))
        model.tss.add_task("topics", TOPICS)
        model.tss.train_task("topics")
        before = snapshot(model)
        model(**make_batch(TOPICS)).loss.backward()
        trained = [p for group in model.tss.trainable_parameters().values() for p in group]
        assert {p.dtype for p in trained} == {p.grad.dtype for p in trained if p.grad is not None} == {torch.float32}
        model.float().to(dtype)
        assert changed(before, model) == set()
        model.tss.seal_task()
        head = model.tss.store.sealed("topics").head
        assert {tensor.dtype for tensor in head.values()} == {torch.float32}
        answer = logits(model, make_batch(TOPICS))
        assert torch.isfinite(answer.float()).all()
        model.float().to(dtype)
        model.tss.verify()
        assert torch.equal(logits(model, make_batch(TOPICS)), answer)


def test_autocast_keeps_parameters_and_dtypes(architecture):
    model = tss.attach(*architecture)
    model.tss.add_task("topics", TOPICS)
    model.tss.train_task("topics")
    batch = make_batch(TOPICS)
    exact = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert 0 < abs(loss.item() - exact.item()) < 2**-5  # bfloat16 keeps 8 bits of numbers of the order of 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.tss.seal_task([batch])


def test_the_signature_names_task_labels_and_what_the_model_takes(architecture):
    backbone, config = architecture
    before = set(inspect.signature(backbone.forward).parameters)
    model = tss.attach(backbone, config)
    assert set(inspect.signature(model.forward).parameters) == {*before, "task", "labels", "num_items_in_batch"}
    assert set(inspect.signature(type(model).forward).parameters) > {"self", "task", "labels"}  # Trainer asks the class
    assert model.can_generate() == backbone.can_generate()


def test_inputs_are_passed_on_or_refused(architecture):
    model = tss.attach(*architecture)
    learn(model.tss, "topics", TOPICS)
    batch = make_batch(TOPICS)
    batch.pop("labels")
    with pytest.raises((ValueError, TypeError), match=r"attention_maks.*did you mean attention_mask"):
        model(batch["input_ids"], attention_maks=batch["attention_mask"], task="topics")
    output = model(**batch, output_hidden_states=True, task="topics")
    assert output.hidden_states[-1].shape[:2] == batch["input_ids"].shape
    batch["attention_mask"][:, 3:] = 0
    masked = model(**batch, task="topics").logits
    batch["input_ids"][:, 3:] = 7
    assert torch.allclose(model(**batch, task="topics").logits, masked, atol=1e-6)


def test_positions_reach_the_backbone():
    from .conftest import ARCHITECTURES

    model = tss.attach(ARCHITECTURES["llama"][0](), tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "topics", TOPICS)
    batch = make_batch(TOPICS)
    batch.pop("labels")
    here = torch.arange(8).expand(4, 8)
    plain = model(**batch, position_ids=here, task="topics").logits
    assert torch.equal(plain, model(**batch, task="topics").logits)
    assert not torch.equal(plain, model(**batch, position_ids=3 * here, task="topics").logits)


def test_label_names_are_those_of_the_active_task(architecture):
    backbone, config = architecture
    model = tss.attach(backbone, config)
    before = dict(backbone.config.id2label)
    learn(model.tss, "topics", TOPICS)
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.config.problem_type == "single_label_classification"
    with model.tss.using(None):
        assert model.config is backbone.config
    assert backbone.config.id2label == before


def test_one_graph_serves_every_sealed_task():
    model = tss.attach(make_bart(encoder_layers=1, decoder_layers=1), tss.AdapterConfig(bottleneck=4))
    names = [f"topics {i}" for i in range(4)]
    for i, name in enumerate(names):
        learn(model.tss, name, TOPICS, seed=i)
    learn(model.tss, "replies", REPLIES)
    batch = make_batch(TOPICS)
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for name in names:
        model.tss.use(name)
        assert torch.equal(logits(compiled, batch), logits(model, batch))
    assert len(graphs) == 1
    for name in ("replies", None):
        model.tss.use(name)
        assert torch.equal(logits(compiled, batch), logits(model, batch))
    for name, kind in (("topics 0", TOPICS), ("replies", REPLIES)):
        labelled = make_batch(kind)
        assert torch.equal(compiled(**labelled, task=name).loss, model(**labelled, task=name).loss)


def test_one_graph_serves_rows_of_any_sealed_tasks():
    model = tss.attach(make_bart(encoder_layers=1, decoder_layers=1), tss.AdapterConfig(bottleneck=4))
    for i in range(4):
        learn(model.tss, f"replies {i}", REPLIES, seed=i)
    model.eval()
    batch, graphs = make_batch(REPLIES), []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for rows in ([0, 1, 2, 3], [3, 3, 0, 1], [2, 2, 2, 2]):
        names = [f"replies {i}" for i in rows]
        assert torch.equal(logits(compiled, batch, names), logits(model, batch, names))
    learn(model.tss, "one more", REPLIES, seed=9)
    names = ["one more", "replies 0", "one more", "replies 3"]
    assert torch.equal(logits(compiled, batch, names), logits(model, batch, names))
    assert len(graphs) == 1


def test_positional_inputs_and_tuples(bart):
    model = tss.attach(bart, tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "topics", TOPICS)
    batch = make_batch(TOPICS)
    named = logits(model, batch, "topics")
    assert torch.equal(model(batch["input_ids"], batch["attention_mask"], task="topics").logits, named)
    loss, answer = model(**batch, return_dict=False)
    assert torch.equal(answer, named)
    assert loss.shape == ()


def test_plain_adapters_start_as_the_identity_and_are_shared(bart):
    batch = make_batch(REPLIES)
    model = tss.attach(bart, tss.AdapterConfig(bottleneck=4, gated=False))
    handle, first = model.tss, logits(bart, batch)
    handle.add_task("replies", REPLIES)
    handle.train_task("replies")
    assert torch.equal(logits(model, batch), first)
    assert handle.density() == handle.packed() == handle.flipped({}) == {}
    handle.seal_task()
    learn(handle, "more", REPLIES, seal=False)
    with handle.using("replies"):
        assert torch.equal(logits(model, batch), logits(model, batch, "more"))
    assert handle.bytes_per_task("replies") == {"gates": 0, "head": 0, "total": 0}
    with pytest.raises(ValueError, match="plain adapters have no importance"):
        handle.seal_task([batch])


def test_what_callers_write_on_the_model_is_the_backbones(bart):
    model = tss.attach(bart, tss.AdapterConfig(bottleneck=4))
    model.generation_config = hf.GenerationConfig(max_new_tokens=3)
    assert bart.generation_config is model.generation_config
    assert model.get_input_embeddings() is bart.get_input_embeddings()
    assert model.get_encoder().layers is bart.get_encoder().layers
    assert model.num_parameters() > bart.num_parameters()
    with pytest.raises(TypeError, match="load the backbone with its own class"):
        type(model).from_pretrained("somewhere")
