"""Words, their first tokens, and tags through truncation and odd characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tss.tasks import Extraction
from tss.tasks.extraction import align, first_tokens

KIND = Extraction(labels=["B-PER", "I-PER", "O"])
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TEMPLATE = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])


def finish(tokenizer):
    tokenizer.post_processor = TEMPLATE
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def bytes_only(add_prefix_space):
    """Byte-level BPE without merges: every byte is a token; offsets may hold the blank in front of a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    return finish(tokenizer)


def pieces():
    """SentencePiece's way: blanks become a mark of their own in front of each word; joiners are normalised away."""
    letters = {letter: i + 5 for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(
        models.BPE({"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "▁": 4, **letters}, [], unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace("\u200d", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return finish(tokenizer)


TOKENIZERS = {"bytes": bytes_only(False), "bytes-prefix": bytes_only(True), "pieces": pieces()}
WORD = st.one_of(
    st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=6).filter(str.strip),
    st.sampled_from(["it's", "Zürich", "日本", "\u200d", "...", "a"]),
)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(words=st.lists(WORD, min_size=1, max_size=8))
def test_every_word_has_its_own_first_token_in_order(name, words):
    rows, starts = align([words], TOKENIZERS[name], 4096)
    assert len(starts[0]) == len(words)
    assert starts[0] == sorted(set(starts[0]))
    assert starts[0][0] > 0
    assert starts[0][-1] < len(rows[0]["input_ids"]) - 1  # neither <s> nor </s>


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tags_come_back_through_labels(name, data):
    words = data.draw(st.lists(WORD, min_size=1, max_size=8))
    tags = data.draw(st.lists(st.sampled_from(KIND.labels), min_size=len(words), max_size=len(words)))
    length = data.draw(st.integers(4, 60))
    example = {"tokens": words, "ner_tags": tags}
    row = KIND.encode(example, TOKENIZERS[name], source_length=length, target_length=1)
    assert len(row["labels"]) == len(row["input_ids"]) <= length
    back = [KIND.labels[label] for label in row["labels"] if label != -100]
    assert back == tags[: len(back)]
    full = KIND.encode(example, TOKENIZERS[name], source_length=4096, target_length=1)
    if "\u200d" not in words:  # next to the cut a word that vanishes cannot be told from one that was cut off
        assert row["labels"][:-1] == full["labels"][: len(row["labels"]) - 1]


def test_first_tokens_by_hand():
    words = ["New", "York's", "x"]
    offsets = [(0, 0), (0, 3), (4, 8), (8, 10), (10, 11), (11, 12), (0, 0)]
    assert first_tokens(words, offsets) == [1, 2, 5]
    with_blank = [(0, 3), (3, 10), (10, 12)]
    assert first_tokens(words, with_blank) == [0, 1, 2]


def test_a_word_without_a_token_leaves_a_gap_before_later_words():
    assert first_tokens(["a", "\u200d", "b"], [(0, 1), (4, 5)]) == [0, None, 1]
    assert first_tokens(["a", "\u200d"], [(0, 1)]) == [0]


def test_words_get_the_tokens_of_running_text():
    tokenizer = TOKENIZERS["bytes"]
    rows, _ = align([["New", "York"]], tokenizer, 64)
    assert rows[0]["input_ids"] == tokenizer("New York")["input_ids"]


def test_a_word_that_vanishes_shifts_nobody():
    example = {"tokens": ["a", "\u200d", "b"], "ner_tags": ["O", "B-PER", "I-PER"]}
    row = KIND.encode(example, TOKENIZERS["pieces"], source_length=64, target_length=1)
    assert [label for label in row["labels"] if label != -100] == [2, 0, 1]


def test_truncated_words_are_predicted_outside(tiny_tokenizer, routed):
    import torch

    model = routed(KIND)
    with torch.no_grad():
        model.head.out.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    examples = [{"tokens": ["Alice"] * 6}, {"tokens": ["Bob"]}]
    encoded = KIND.encode_all(examples, tiny_tokenizer, source_length=5, target_length=1)
    batch = KIND.collate(encoded, pad_id=1)
    assert KIND.predict(model, batch, tiny_tokenizer) == [["B-PER"] * 3, ["B-PER"]]
    full = KIND.predict(model, batch, tiny_tokenizer, examples=examples)
    assert full == [["B-PER"] * 3 + ["O"] * 3, ["B-PER"]]
    truth = [["B-PER"] * 6, ["B-PER"]]
    assert KIND.score([["B-PER"] * 3, ["B-PER"]], truth) == KIND.score(full, truth)
    assert KIND.score(full, truth)["recall"] == pytest.approx(100 * 4 / 7)


@pytest.mark.parametrize("name", ["bart", "t5", "bert", "llama"])
def test_every_architecture_tags(name, tiny_tokenizer, routed):
    example = {"tokens": ["Alice", "works"], "ner_tags": ["B-PER", "O"]}
    batch = KIND.collate([KIND.encode(example, tiny_tokenizer, source_length=16, target_length=1)], pad_id=1)
    output = routed(KIND, name)(**batch)
    assert output.logits.shape == (1, 8, 3)
    assert output.loss.item() > 0


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(ValueError, match="needs a fast tokenizer"):
        align([["a"]], object(), 8)


def test_an_unknown_tag_is_named(tiny_tokenizer):
    with pytest.raises(ValueError, match="tag 'B-ORG' is not one of B-PER, I-PER, O"):
        KIND.encode({"tokens": ["a"], "ner_tags": ["B-ORG"]}, tiny_tokenizer, source_length=8, target_length=1)


@pytest.mark.parametrize("tags", [[], ["B-PER"], ["O", "O", "O"]], ids=["none", "fewer", "more"])
def test_as_many_tags_as_words(tags, tiny_tokenizer):
    with pytest.raises(ValueError, match=rf"{len(tags)} tags for 2 words, which begin with \['good', 'bad'\]"):
        KIND.encode({"tokens": ["good", "bad"], "ner_tags": tags}, tiny_tokenizer, source_length=8, target_length=1)


def test_a_batch_that_does_not_say_where_words_begin_is_refused(tiny_tokenizer, routed):
    rows = KIND.encode_all([{"tokens": ["good"]}], tiny_tokenizer, source_length=8, target_length=1)
    batch = {key: value for key, value in KIND.collate(rows, pad_id=1).items() if key != "labels"}
    with pytest.raises(ValueError, match="does not say where words begin"):
        KIND.predict(routed(KIND), batch, tiny_tokenizer)
