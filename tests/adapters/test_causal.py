"""Generation tasks on causal language models."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import tss
from tss.adapters.importance import raw_importance

from .conftest import ARCHITECTURES, SIZES, TOKENS, VOCABULARY, learn, logits, make_batch

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
    with model.tss.using(names):
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


def test_beams_of_left_padded_rows_are_those_of_each_row_alone(model):
    for seed, name in enumerate(("one", "two")):
        learn(model.tss, name, tss.Generation(), seed=seed)
    ids = torch.randint(5, VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(0))
    mask, names = torch.ones_like(ids), ["one", "two", "two", "one"]
    for row, padding in ((0, 3), (2, 5)):
        ids[row, :padding], mask[row, :padding] = 1, 0
    settings = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "min_new_tokens": 4}
    mixed = model.generate(input_ids=ids, attention_mask=mask, task=names, **settings)
    for i, name in enumerate(names):
        start = int((mask[i] == 0).sum())
        row = {"input_ids": ids[i : i + 1, start:], "attention_mask": mask[i : i + 1, start:]}
        alone = model.generate(**row, task=name, **settings)
        assert torch.equal(alone[:, 8 - start :], mixed[2 * i : 2 * i + 2, 8:])


def test_importance_of_a_batch_is_the_mean_over_its_rows(model):
    """All rows have as many labels, so that the mean over tokens is the mean over rows."""
    model.tss.add_task("one", tss.Generation())
    model.tss.train_task("one")
    batch = make_batch(tss.Generation())
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(4)]
    of_batch, of_rows = (
        raw_importance(model.tss.layers, (model(**part).loss for part in parts), "signed") for parts in ([batch], rows)
    )
    for name, importance in of_batch.items():
        assert importance.abs().max() > 0
        assert (importance - of_rows[name]).abs().max() <= 1e-5 * importance.abs().max()


def test_a_kind_that_add_task_did_not_make_for_the_model_is_refused(model, tiny_tokenizer):
    """Its batches have labels of their own, as encoder-decoders need them; most often the shapes agree."""
    model.tss.add_task("one", KIND)
    model.tss.train_task("one")
    rows = KIND.encode_all(EXAMPLES, tiny_tokenizer, source_length=16, target_length=8)
    for multiple in (8, 1):
        batch = KIND.collate(rows, pad_id=1, multiple=multiple)
        for loss in (lambda batch=batch: model(**batch).loss, lambda batch=batch: model.tss.loss(**batch)):
            with pytest.raises(ValueError, match=r"predicts its own input, .* with model\.tss\.tasks\[name\]\.kind"):
                loss()
    with pytest.raises(ValueError, match="this Generation is for encoder-decoder models, which"):
        KIND.predict(model, batch, tiny_tokenizer)


def test_a_few_corrupted_inputs_are_not(model, tiny_tokenizer):
    model.tss.add_task("one", KIND)
    model.tss.train_task("one")
    kind = model.tss.tasks["one"].kind
    batch = kind.collate(kind.encode_all(EXAMPLES, tiny_tokenizer, source_length=16, target_length=8), pad_id=1)
    clean = model(**batch).loss
    batch["input_ids"][0, (batch["labels"][0] != -100).nonzero()[0]] = 4
    assert model(**batch).loss != clean
