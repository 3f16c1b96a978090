"""What every kind of task does, and classification and generation in particular."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tss.tasks import KINDS, Classification, Extraction, Generation, kind_from_dict
from tss.tasks.base import mean_loss
from tss.tasks.generation import prompts_of

ALL = [
    Classification(labels=["bad", "good"]),
    Classification(labels=["bad", "good", "great"], metric="accuracy", features="encoder_mean", head="linear"),
    Extraction(labels=["B-PER", "I-PER", "O"], features="encoder"),
    Generation(metric="bleu", num_beams=2, min_new_tokens=1, max_new_tokens=6, no_repeat_ngram_size=0),
]
EXAMPLES = {
    "classification": [
        {"text": "the good battery", "label": "good"},
        {"text": "the bad poor camera was bad in Paris", "label": "bad", "aspect": "camera"},
        {"text": "good", "label": "good"},
    ],
    "extraction": [
        {"tokens": ["Alice", "works", "in", "Paris"], "ner_tags": ["B-PER", "O", "O", "O"]},
        {"tokens": ["Bob"], "ner_tags": ["B-PER"]},
    ],
    "generation": [
        {"source": "the cheap hotel in Paris", "target": "the hotel is cheap", "context": "never read"},
        {"source": "taxi", "target": "we likes the taxi"},
    ],
}
ANSWER = {"classification": "label", "extraction": "ner_tags", "generation": "target"}
LENGTHS = {"source_length": 32, "target_length": 16}


def identity(kind):
    return f"{kind.kind}-{kind.main_metric}"


@pytest.fixture(params=ALL, ids=identity)
def kind(request):
    return request.param


def test_settings_survive_json(kind):
    again = kind_from_dict(json.loads(json.dumps(kind.to_dict())))
    assert again == kind
    assert hash(again) == hash(kind)
    assert type(kind).from_dict(kind.to_dict()) == kind


def test_one_by_one_is_the_same_as_all_at_once(kind, tiny_tokenizer):
    examples = EXAMPLES[kind.kind]
    one_by_one = [kind.encode(example, tiny_tokenizer, **LENGTHS) for example in examples]
    assert one_by_one == kind.encode_all(examples, tiny_tokenizer, **LENGTHS)


def test_batches_are_padded_to_eight_and_masked(kind, tiny_tokenizer):
    encoded = kind.encode_all(EXAMPLES[kind.kind], tiny_tokenizer, **LENGTHS)
    batch = kind.collate(encoded, pad_id=1)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] % 8 == 0
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in encoded]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 1).all()


def test_loss_has_a_gradient_and_ignores_padding(kind, tiny_tokenizer, routed):
    model = routed(kind)
    encoded = kind.encode_all(EXAMPLES[kind.kind][:1], tiny_tokenizer, **LENGTHS)
    batch = kind.collate(encoded, pad_id=1)
    loss = model(**batch).loss
    loss.backward()
    assert model.model.get_input_embeddings().weight.grad.abs().sum() > 0
    wider = {
        key: torch.nn.functional.pad(batch[key], (0, 8), value=value) for key, value in PADS if batch[key].ndim == 2
    }
    assert model(**{**batch, **wider}).loss.item() == pytest.approx(loss.item(), rel=1e-5)


PADS = (("input_ids", 1), ("attention_mask", 0), ("labels", -100))


def test_predictions_need_no_answers_and_match_the_references_in_form(kind, tiny_tokenizer, routed):
    examples = EXAMPLES[kind.kind]
    bare = [{name: value for name, value in row.items() if name != ANSWER[kind.kind]} for row in examples]
    batch = kind.collate(kind.encode_all(bare, tiny_tokenizer, **LENGTHS), pad_id=1)
    model = routed(kind)
    model = model.model if kind.kind == "generation" else model
    predictions = kind.predict(model, batch, tiny_tokenizer)
    references = kind.references(examples)
    assert [type(p) for p in predictions] == [type(r) for r in references]
    scores = kind.score(predictions, references)
    assert kind.main_metric in scores
    assert all(0.0 <= value <= 100.0 for value in scores.values())


def test_perfect_predictions_score_a_hundred(kind):
    examples = (
        [{"source": "a", "target": "one two three four five"}] if kind.kind == "generation" else EXAMPLES[kind.kind]
    )
    references = kind.references(examples)
    assert kind.score(references, references)[kind.main_metric] == pytest.approx(100.0)


def test_scores_say_how_they_were_made(kind):
    assert any(character.isdigit() for character in kind.signature())


def test_labels_are_in_all_rows_or_in_none(kind, tiny_tokenizer):
    encoded = kind.encode_all(EXAMPLES[kind.kind][:2], tiny_tokenizer, **LENGTHS)
    del encoded[1]["labels"]
    with pytest.raises(ValueError, match="1 of 2 rows have labels"):
        kind.collate(encoded, pad_id=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "clasification", "labels": ["a"]}, "unknown kind of task 'clasification'; there are: classification"),
        ({"labels": ["a"]}, "unknown kind of task None"),
        (
            {"kind": "classification", "labels": ["a"], "classes": 2},
            "no setting classes; it has: features, head, labels, metric",
        ),
        ({"kind": "classification", "labels": ["a"], "metric": "f1"}, "metric='f1' is not one of macro_f1, accuracy"),
        ({"kind": "classification", "labels": ["a"], "features": "cls"}, "features='cls' is not one of auto"),
        ({"kind": "classification", "labels": []}, "at least one and all different"),
        ({"kind": "classification", "labels": ["a", "a"]}, "at least one and all different"),
        ({"kind": "classification", "labels": "ab"}, "must be a list of strings"),
        ({"kind": "classification", "labels": {"a", "b"}}, r"labels are a set.*give sorted\(labels\)"),
        ({"kind": "extraction", "labels": frozenset({"O", "B-X"})}, r"labels are a set.*give sorted\(labels\)"),
        ({"kind": "extraction", "labels": ["O", "U-X", "L-X"]}, "'U-X' is neither \"O\" nor B, I, E or S"),
        ({"kind": "extraction", "labels": ["O", "NOUN"]}, "'NOUN' is neither"),
        ({"kind": "extraction", "labels": ["B-X", "I-X"]}, 'labels must contain "O"'),
        ({"kind": "classification", "labels": ["a"], "head": "mlp"}, "head='mlp' is not one of dense, linear"),
        ({"kind": "extraction", "labels": ["O"], "features": "decoder_last"}, "is not one of auto, encoder, decoder"),
        ({"kind": "generation", "metric": "rouge"}, "metric='rouge' is not one of rouge1"),
        ({"kind": "generation", "num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"kind": "generation", "min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 exceeds max_new_tokens=8"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        kind_from_dict(settings)


@pytest.mark.parametrize("labels", [["a", "b"], ("a", "b"), np.array(["a", "b"]), {"a": 1, "b": 2}], ids=repr)
def test_labels_keep_the_order_of_what_has_one(labels):
    assert Classification(labels=labels).labels == ("a", "b")


def test_every_kind_is_in_the_table():
    assert {type(kind).kind: type(kind) for kind in ALL} == KINDS


@pytest.mark.parametrize("features", ["auto", "encoder_mean", "encoder_first", "decoder_last"])
@pytest.mark.parametrize("name", ["bart", "t5", "bert", "llama"])
def test_classification_reads_each_architecture(name, features, tiny_tokenizer, routed):
    kind = Classification(labels=["bad", "good"], features=features)
    encoded = kind.encode_all(EXAMPLES["classification"], tiny_tokenizer, **LENGTHS)
    batch = kind.collate(encoded, pad_id=1)
    model = routed(kind, name)
    if (name, features.split("_")[0]) in (("bert", "decoder"), ("llama", "encoder")):
        with pytest.raises(ValueError, match="which has only"):
            model(**batch)
        return
    output = model(**batch)
    assert output.logits.shape == (3, 2)
    # what a row says does not hang on the rows beside it
    alone = model(**kind.collate(encoded[2:], pad_id=1)).logits
    assert torch.allclose(output.logits[2:], alone, atol=1e-6)


def test_an_aspect_is_a_segment_of_its_own_and_survives_truncation(tiny_tokenizer):
    kind = Classification(labels=["good"])
    example = {"text": "the good battery and the screen", "aspect": " battery", "label": "good"}
    ids = kind.encode(example, tiny_tokenizer, source_length=32, target_length=1)["input_ids"]
    assert tiny_tokenizer.decode(ids) == "<s> battery </s> </s> the good battery and the screen </s>"
    short = kind.encode(example, tiny_tokenizer, source_length=7, target_length=1)["input_ids"]
    assert tiny_tokenizer.decode(short) == "<s> battery </s> </s> the good </s>"


def test_a_label_that_the_task_lacks_is_named(tiny_tokenizer):
    with pytest.raises(ValueError, match="label 'fine' is not one of bad, good"):
        Classification(labels=["bad", "good"]).encode({"text": "a", "label": "fine"}, tiny_tokenizer, **LENGTHS)


def test_classification_predicts_the_largest_logit(tiny_tokenizer, routed):
    kind = Classification(labels=["bad", "good"])
    model = routed(kind)
    with torch.no_grad():
        model.head.out.bias.copy_(torch.tensor([-9.0, 9.0]))
    batch = kind.collate(kind.encode_all(EXAMPLES["classification"], tiny_tokenizer, **LENGTHS), pad_id=1)
    assert kind.predict(model, batch, tiny_tokenizer) == ["good"] * 3


@pytest.mark.parametrize(
    ("settings", "positions", "lengths"),
    [
        ({"num_beams": 2, "min_new_tokens": 3, "max_new_tokens": 5}, 64, range(4, 7)),
        ({"num_beams": 1, "min_new_tokens": 50, "max_new_tokens": 50}, 9, range(9, 10)),
    ],
)
def test_generation_keeps_its_bounds_and_those_of_the_model(tiny_tokenizer, models, settings, positions, lengths):
    kind, model = Generation(**settings, no_repeat_ngram_size=0), models["bart"]
    batch = kind.collate(kind.encode_all(EXAMPLES["generation"], tiny_tokenizer, **LENGTHS), pad_id=1)
    model.config.max_position_embeddings = positions
    ids, original = [], model.generate
    model.generate = lambda **settings: ids.append(original(**settings)) or ids[0]
    assert len(kind.predict(model, batch, tiny_tokenizer)) == 2
    assert ids[0].shape[1] in lengths  # with the start token


def test_the_positions_of_a_decoder_that_has_its_own(tiny_tokenizer, models):
    kind, model = Generation(num_beams=1, min_new_tokens=50, max_new_tokens=50), models["bart"]
    batch = kind.collate(kind.encode_all(EXAMPLES["generation"], tiny_tokenizer, **LENGTHS), pad_id=1)
    model.config.max_position_embeddings, model.config.max_decoder_position_embeddings = 64, 9  # as LED's names them
    model.config.max_encoder_position_embeddings = 64
    seen, original = [], model.generate
    model.generate = lambda **settings: seen.append(settings["max_new_tokens"]) or original(**settings)
    kind.predict(model, batch, tiny_tokenizer)
    assert seen == [8]


def test_generation_on_a_model_without_a_language_model_head_is_refused(tiny_tokenizer, models):
    kind = Generation()
    batch = kind.collate(kind.encode_all(EXAMPLES["generation"], tiny_tokenizer, **LENGTHS), pad_id=1)
    for model in (models["bert"], models["llama"].base_model, models["bart"].base_model):
        with pytest.raises(ValueError, match=f"need a language-model head, which {type(model).__name__} lacks"):
            kind.predict(model, batch, tiny_tokenizer)


def test_a_causal_model_reads_prompt_and_answer_as_one_sequence(tiny_tokenizer, models):
    kind = Generation(prompt="the {source} is", num_beams=2, max_new_tokens=5).for_model(models["llama"])
    assert kind.causal
    assert Generation().for_model(models["bart"]) == Generation()
    examples = [{"source": "cheap hotel", "target": "good"}, {"source": "taxi " * 50, "target": "poor phone in Paris"}]
    rows = kind.encode_all(examples, tiny_tokenizer, source_length=12, target_length=4)
    texts = [tiny_tokenizer.decode(row["input_ids"]) for row in rows]
    assert texts == [
        "<s> the cheap hotel is good </s>",
        " ".join(["<s> the", *["taxi"] * 9, "is poor phone in </s>"]),
    ]
    for row, example in zip(rows, examples, strict=True):
        asked = [i for i, label in enumerate(row["labels"]) if label != -100]
        assert [row["input_ids"][i] for i in asked] == [row["labels"][i] for i in asked]
        assert len(asked) == min(4, len(example["target"].split()) + 1)
    batch = kind.collate(rows, pad_id=1)
    prompts = prompts_of(batch, 1)
    assert tiny_tokenizer.batch_decode(prompts["input_ids"]) == [
        " ".join(["<pad>"] * 7 + ["<s> the cheap hotel is"]), " ".join(["<s> the", *["taxi"] * 9, "is"])
    ]  # fmt: skip
    assert prompts["attention_mask"].sum(1).tolist() == [5, 12]
    model = models["llama"]
    alone = [
        kind.predict(model, kind.collate(kind.encode_all([{"source": example["source"]}], tiny_tokenizer,
                     source_length=12, target_length=4), pad_id=1), tiny_tokenizer)[0]
        for example in examples
    ]  # fmt: skip
    assert kind.predict(model, batch, tiny_tokenizer) == alone


def test_prompts_hold_the_source_once():
    for prompt in ("no place", "{source} {source}"):
        with pytest.raises(ValueError, match=r'must contain "\{source\}" exactly once'):
            Generation(prompt=prompt)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        (Classification(labels=["a"]), set()),
        (Classification(labels=["a"], features="encoder_mean"), {"llama"}),
        (Classification(labels=["a"], features="decoder_last"), {"bert"}),
        (Extraction(labels=["O"]), set()),
        (Extraction(labels=["O"], features="encoder"), {"llama"}),
        (Generation(), {"bert"}),
    ],
)
def test_a_model_that_cannot_learn_a_kind_is_refused(kind, refused, models):
    for name, model in models.items():
        if name in refused:
            with pytest.raises(ValueError, match=type(model).__name__):
                kind.check_model(model)
        else:
            kind.check_model(model)


def test_loss_is_the_models_own_for_generation(tiny_tokenizer, models, routed):
    kind = Generation()
    batch = kind.collate(kind.encode_all(EXAMPLES["generation"], tiny_tokenizer, **LENGTHS), pad_id=1)
    assert torch.equal(routed(kind)(**batch).loss, models["bart"](**batch).loss)


def test_a_loss_over_nothing_is_zero_and_not_nan():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = mean_loss(logits, torch.tensor([-100, -100]))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().sum() == 0.0


def test_a_loss_is_the_mean_over_what_counts():
    logits = torch.randn(4, 3)
    labels = torch.tensor([0, -100, 2, 1])
    assert torch.allclose(mean_loss(logits, labels), torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("name", ["bart", "t5", "bert", "llama"])
@pytest.mark.parametrize("kind", [ALL[0], Extraction(labels=["B-PER", "I-PER", "O"])], ids=lambda kind: kind.kind)
def test_half_precision_backbones_and_autocast_give_float32_losses(name, kind, tiny_tokenizer, routed):
    batch = kind.collate(kind.encode_all(EXAMPLES[kind.kind], tiny_tokenizer, **LENGTHS), pad_id=1)
    model = routed(kind, name)
    exact = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch).loss
    model.model.bfloat16()
    half = model(**batch).loss
    assert mixed.dtype == half.dtype == torch.float32
    # bfloat16 keeps 8 bits; logits of a new head are small, so the loss stays near ln(classes)
    assert mixed.item() == pytest.approx(exact.item(), rel=2**-7)
    assert half.item() == pytest.approx(exact.item(), rel=2**-7)


@pytest.mark.parametrize("length", [8, 9, 16, 40])
def test_the_prompt_after_a_source_is_kept_whole_and_the_source_cut(tiny_tokenizer, models, length):
    kind = Generation(prompt="the {source} is good").for_model(models["bart"])
    source = "a phone screen battery </s> Alice visits Paris buys hotel " * 3
    (row,) = kind.encode_all([{"source": source}], tiny_tokenizer, source_length=length, target_length=8)
    whole = tiny_tokenizer(f"the {source} is good")["input_ids"]
    tail = tiny_tokenizer(" is good")["input_ids"][1:]
    kept = min(length, len(whole))
    assert len(row["input_ids"]) == kept
    assert row["input_ids"][-len(tail) :] == tail, "with the end token"
    assert row["input_ids"][: kept - len(tail)] == whole[: kept - len(tail)], "the source up to where it was cut"


def test_a_prompt_longer_than_the_limit_is_cut_itself(tiny_tokenizer, models):
    kind = Generation(prompt="{source} is good is good is good").for_model(models["bart"])
    (row,) = kind.encode_all([{"source": "a phone"}], tiny_tokenizer, source_length=4, target_length=8)
    assert len(row["input_ids"]) == 4
    assert row["input_ids"][-1] == tiny_tokenizer.eos_token_id
