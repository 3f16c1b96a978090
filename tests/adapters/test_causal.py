"""Generation tasks on causal language models."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import tss

from .conftest import ARCHITECTURES, SIZES, TOKENS, VOCABULARY, learn, logits

KIND = tss.Generation(num_beams=2, max_new_tokens=4, no_repeat_ngram_size=0)


def make_opt():
    torch.manual_seed(0)
    sizes = {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64, "vocab_size": VOCABULARY}
    return hf.OPTForCausalLM(hf.OPTConfig(**{**SIZES, **sizes, **TOKENS}))


MAKE = {name: ARCHITECTURES[name][0] for name in ("gpt2", "llama")} | {"opt": make_opt}
EXAMPLES = [
    {"source": "cheap hotel in Paris", "target": "we likes the hotel"},
    {"source": "taxi", "target": "the taxi is cheap"},
    {"source": "Alice works at Acme", "target": "she works"},
]


@pytest.fixture(params=list(MAKE))
def model(request):
    return tss.attach(MAKE[request.param](), tss.AdapterConfig(bottleneck=8, weight_init="signed_constant")).eval()


def teach(model, name, tokenizer, *, steps=30, seed=0):
    """Some steps on the examples, their answers turned by `seed`, then seal."""
    handle = model.tss
    handle.tokenizer = tokenizer
    handle.add_task(name, KIND)
    handle.train_task(name)
    kind = handle.tasks[name].kind
    targets = [example["target"] for example in EXAMPLES]
    examples = [{**example, "target": targets[(i + seed) % len(targets)]} for i, example in enumerate(EXAMPLES)]
    batch = kind.collate(kind.encode_all(examples, tokenizer, source_length=16, target_length=8), pad_id=1)
    optimizer = handle.optimizer(score_lr=0.05, head_lr=0.0)
    losses = []
    for _ in range(steps):
        loss = handle.loss(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    handle.seal_task([batch])
    return batch, losses


def test_a_task_learns_answers_alone_and_stays(model, tiny_tokenizer):
    batch, losses = teach(model, "one", tiny_tokenizer)
    assert min(losses[-5:]) < losses[0]
    assert torch.allclose(model(**batch, task="one").loss, model.tss.loss(**batch))
    shifted, asked = model(**batch, task="one").logits[:, :-1], batch["labels"][:, 1:]
    own = torch.nn.functional.cross_entropy(shifted.transpose(1, 2), asked, ignore_index=-100)
    assert torch.allclose(model(**batch, task="one").loss, own, atol=1e-5)
    first = logits(model, batch, "one")
    teach(model, "two", tiny_tokenizer, seed=1)
    assert torch.equal(logits(model, batch, "one"), first)
    assert not torch.equal(logits(model, batch, "two"), first)


def test_rows_of_different_tasks_generate_with_left_padding_and_beams(model, tiny_tokenizer):
    batch, _ = teach(model, "one", tiny_tokenizer)
    teach(model, "two", tiny_tokenizer, seed=1)
    kind, names = model.tss.tasks["one"].kind, ["one", "two", "one"]
    with model.tss.rows(names):
        mixed = kind.predict(model, batch, tiny_tokenizer)
    for i, name in enumerate(names):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        with model.tss.using(name):
            assert kind.predict(model, row, tiny_tokenizer) == [mixed[i]]
    labelled = tss.Classification(labels=("no", "yes"))
    learn(model.tss, "topics", labelled)
    with pytest.raises(ValueError, match="'topics' is of kind classification and cannot generate text"):
        model.generate(input_ids=batch["input_ids"], task="topics")


def test_the_adapted_kind_is_what_is_kept(model, tiny_tokenizer, tmp_path):
    teach(model, "one", tiny_tokenizer, steps=1)
    assert not KIND.causal
    assert model.tss.tasks["one"].kind.causal
    model.tss.save(tmp_path)
    again = tss.load(model.tss.detach(), tmp_path)
    assert again.tss.tasks["one"].kind.causal
