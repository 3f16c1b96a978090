"""One contract for every architecture with a preset: what is learned stays, is kept, and answers by row."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers as hf

import tss

from .conftest import ARCHITECTURES, NAMES, REPLIES, SIZES, TOKENS, TOPICS, VOCABULARY, WIDTH, make_batch
from .test_causal import make_opt

SMALL = {"vocab_size": VOCABULARY, **SIZES, **TOKENS}
STACKS = {f"{stack}_{key}": value for stack in ("encoder", "decoder")
          for key, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
HEADS = {"num_key_value_heads": 1, "head_dim": 8}


def _sequence_to_sequence(name, **settings):
    config = getattr(hf, f"{name}Config")(
        vocab_size=VOCABULARY, d_model=WIDTH, decoder_start_token_id=2, **STACKS, **TOKENS, **settings
    )
    return getattr(hf, f"{name}ForConditionalGeneration")(config)


def _stack(name, model, **settings):
    return getattr(hf, model)(getattr(hf, f"{name}Config")(**{**SMALL, **settings}))


MAKE = {
    **{name: make for name, (make, settings) in ARCHITECTURES.items() if name not in ("regex", "base")},
    "mbart": lambda: _sequence_to_sequence("MBart", max_position_embeddings=64),
    "pegasus": lambda: _sequence_to_sequence("Pegasus", max_position_embeddings=64),
    "led": lambda: _sequence_to_sequence(
        "LED", attention_window=[4, 4], max_encoder_position_embeddings=64, max_decoder_position_embeddings=64
    ),
    "distilbert": lambda: hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(vocab_size=VOCABULARY, dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=32, pad_token_id=1)
    ),
    "electra": lambda: _stack("Electra", "ElectraForMaskedLM", embedding_size=WIDTH),
    "deberta-v3": lambda: _stack(
        "DebertaV2", "DebertaV2ForMaskedLM", relative_attention=True, position_buckets=8, share_att_key=True,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", type_vocab_size=0, position_biased_input=False,
    ),
    "modernbert": lambda: _stack(
        "ModernBert", "ModernBertForMaskedLM", cls_token_id=0, sep_token_id=2, attn_implementation="eager"
    ),
    "opt": make_opt,
    "mistral": lambda: _stack("Mistral", "MistralForCausalLM", **HEADS),
    "qwen2": lambda: _stack("Qwen2", "Qwen2ForCausalLM", num_key_value_heads=1),
    "qwen3": lambda: _stack("Qwen3", "Qwen3ForCausalLM", **HEADS),
    "gemma": lambda: _stack("Gemma", "GemmaForCausalLM", **HEADS),
    "vit": lambda: hf.ViTModel(
        hf.ViTConfig(**{k: v for k, v in SMALL.items() if k in SIZES}, image_size=8, patch_size=4)
    ),
}  # fmt: skip
GENERATE = {"bart", "t5", "mbart", "pegasus", "led", "gpt2", "llama", "opt", "mistral", "qwen2", "qwen3", "gemma"}
CONFIG = tss.AdapterConfig(bottleneck=4, weight_init="signed_constant")


def make(name):
    torch.manual_seed(0)
    return MAKE[name]().eval()


def batch_of(name, kind, seed=0, padded=True):
    batch = make_batch(kind, seed=seed)
    if name == "vit":
        generator = torch.Generator().manual_seed(seed)
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator), "labels": batch["labels"]}
    if padded:
        batch["attention_mask"][1, 5:] = 0
        batch["input_ids"][1, 5:] = 1
        if kind is NAMES:
            batch["labels"][1, 5:] = -100
    return batch


def teach(model, name, task, kind, seed=0):
    model.tss.add_task(task, kind)
    model.tss.train_task(task)
    optimizer = model.tss.optimizer(score_lr=0.05, head_lr=0.05)
    batches = [batch_of(name, kind, seed=10 * seed + i) for i in range(2)]
    model.train()
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.tss.seal_task(batches)
    model.eval()


@torch.no_grad()
def answer(model, inputs, **task):
    return model(**{key: value for key, value in inputs.items() if key != "labels"}, **task).logits


@pytest.mark.parametrize("name", MAKE)
def test_labelled_tasks(name, tmp_path):
    kinds = {"topics": TOPICS} if name == "vit" else {"topics": TOPICS, "names": NAMES}
    model, batch = tss.attach(make(name), CONFIG), batch_of(name, TOPICS)
    bare = {key: value for key, value in batch.items() if key != "labels"}
    if model.config.is_encoder_decoder:
        bare["decoder_input_ids"] = batch["input_ids"]
    assert all(layer.scores.requires_grad is False for layer in model.tss.layers.values())
    for seed, (task, kind) in enumerate(kinds.items()):
        teach(model, name, task, kind, seed)
    first = {task: answer(model, batch, task=task) for task in kinds}
    teach(model, name, "topics again", TOPICS, seed=5)
    model.tss.verify()
    for task, expected in first.items():
        assert torch.equal(answer(model, batch, task=task), expected)
        assert torch.isfinite(expected).all()
    again = answer(model, batch, task="topics again")
    assert not torch.equal(again, first["topics"])
    # every row by its own task, in one pass
    mixed = answer(model, batch, task=["topics", "topics again", "topics", "topics again"])
    for row, logits in enumerate(mixed):
        assert torch.allclose(logits, (again if row % 2 else first["topics"])[row], rtol=1e-4, atol=1e-5)
    # gradients under checkpointing are those without
    if getattr(model.core, "supports_gradient_checkpointing", False):
        model.tss.add_task("more", TOPICS)
        model.tss.train_task("more")
        gradients = []
        for on in (False, True):
            if on:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
            torch.manual_seed(1)
            loss = model(**batch).loss
            model.tss.use("topics")
            loss.backward()
            model.tss.use("more")
            gradients.append([layer.scores.grad.clone() for layer in model.tss.layers.values()])
            model.zero_grad()
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
        model.gradient_checkpointing_disable()
        model.tss.abandon()
        model.tss.delete_task("more")
    model.eval()
    twin = copy.deepcopy(model)
    model.tss.save(tmp_path)
    backbone = model.tss.detach()
    loaded = tss.load(make(name), tmp_path)
    for other in (twin, loaded):
        assert all(torch.equal(answer(other, batch, task=task), expected) for task, expected in first.items())
    with torch.no_grad():
        untouched, now = make(name)(**bare), backbone(**bare)
    assert torch.equal(untouched[0], now[0])


@pytest.mark.parametrize("name", sorted(GENERATE))
def test_generation_tasks(name):
    model = tss.attach(make(name), CONFIG)
    for seed, task in enumerate(("one", "two")):
        teach(model, name, task, REPLIES, seed)
    inputs = {key: value for key, value in batch_of(name, REPLIES, padded=False).items() if key != "labels"}
    settings = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "min_new_tokens": 4}
    first = model.generate(**inputs, task="one", **settings)
    names = ["one", "two", "one", "two"]
    mixed = model.generate(**inputs, task=names, **settings)
    for row, task in enumerate(names):
        alone = model.generate(**{key: value[row : row + 1] for key, value in inputs.items()}, task=task, **settings)
        assert torch.equal(alone[0], mixed[row])
    teach(model, name, "three", REPLIES, seed=3)
    assert torch.equal(model.generate(**inputs, task="one", **settings), first)


@pytest.mark.parametrize("name", MAKE)
def test_modes_copies_autocast_and_precision(name):
    model, batch = tss.attach(make(name), CONFIG), batch_of(name, TOPICS)
    teach(model, name, "old", TOPICS)
    model.tss.add_task("topics", TOPICS)
    model.tss.train_task("topics")
    first, old = answer(model, batch), answer(model, batch, task="old")
    assert torch.equal(answer(model, batch), first)  # evaluating, also the head that is new
    twin = pickle.loads(pickle.dumps(model))
    for one in (twin, copy.deepcopy(model)):
        assert torch.equal(answer(one, batch), first)
        assert torch.equal(answer(one, batch, task="old"), old)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    twin.bfloat16()
    assert {p.dtype for p in twin.parameters() if p.requires_grad} == {torch.float32}
    pixels = {key: value.bfloat16() for key, value in batch.items() if value.is_floating_point()}
    loss = twin(**batch | pixels).loss
    loss.backward()
    assert torch.isfinite(loss)
    twin.tss.seal_task([batch | pixels])
    twin.tss.verify()
    assert torch.isfinite(answer(twin, batch | pixels, task="old").float()).all()
