"""Features of the backbone, pooling, and the head."""

from __future__ import annotations

import pytest
import torch

from tss.tasks.heads import Head, architecture, features, pool, real_tokens, shift_right

IDS = torch.tensor([[0, 5, 6, 7, 2, 1, 1, 1], [0, 8, 9, 10, 11, 12, 13, 2]])
MASK = (IDS != 1).long()


def test_each_architecture_is_recognised(models):
    found = {name: architecture(model) for name, model in models.items()}
    assert found == {"bart": "encoder-decoder", "t5": "encoder-decoder", "bert": "encoder", "llama": "decoder"}


def test_a_bare_backbone_is_recognised_too(models):
    assert architecture(models["bert"].base_model) == "encoder"
    assert architecture(models["llama"].base_model) == "decoder"


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_decoder_features_are_those_of_the_models_own_decoder(models, name):
    model = models[name]
    own = model(
        input_ids=IDS,
        attention_mask=MASK,
        decoder_input_ids=shift_right(IDS, model.config.decoder_start_token_id),
        use_cache=False,
        output_hidden_states=True,
    )
    hidden, mask = features(model, {"input_ids": IDS, "attention_mask": MASK})[:2]
    assert torch.equal(hidden, own.decoder_hidden_states[-1])
    assert torch.equal(mask, MASK)
    encoded, _ = features(model, {"input_ids": IDS, "attention_mask": MASK}, "encoder")[:2]
    assert torch.equal(encoded, own.encoder_last_hidden_state)


def test_bart_features_are_those_of_its_own_classifier(models):
    from transformers import BartForSequenceClassification

    classifier = BartForSequenceClassification(models["bart"].config).eval()
    classifier.model.load_state_dict(models["bart"].model.state_dict())
    seen = []
    classifier.classification_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    classifier(input_ids=IDS, attention_mask=MASK)
    hidden, mask = features(models["bart"], {"input_ids": IDS, "attention_mask": MASK})[:2]
    assert torch.equal(pool(hidden, mask, "last"), seen[0])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_single_stack_features_are_the_last_hidden_state(models, name):
    own = models[name](input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[-1]
    hidden, _ = features(models[name], {"input_ids": IDS, "attention_mask": MASK})[:2]
    assert torch.equal(hidden, own)


def test_segments_reach_a_model_that_knows_them(models):
    types = torch.zeros_like(IDS)
    types[:, 3:] = 1
    plain, _ = features(models["bert"], {"input_ids": IDS, "attention_mask": MASK})[:2]
    typed, _ = features(models["bert"], {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": types})[:2]
    assert not torch.equal(plain, typed)


@pytest.mark.parametrize("name", ["bart", "t5", "bert", "llama"])
def test_the_vocabulary_product_is_never_computed(models, name):
    output = models[name].get_output_embeddings()
    output.register_forward_hook(lambda *args: pytest.fail("the language-model head ran"))
    features(models[name], {"input_ids": IDS, "attention_mask": MASK})


@pytest.mark.parametrize(("name", "stack"), [("bert", "decoder"), ("llama", "encoder")])
def test_a_stack_that_is_not_there_is_refused(models, name, stack):
    with pytest.raises(ValueError, match=f"features of the {stack} .* has only"):
        features(models[name], {"input_ids": IDS}, stack)


def test_embeddings_alone_are_refused(models):
    with pytest.raises(ValueError, match="needs input_ids"):
        features(models["bart"], {"inputs_embeds": torch.zeros(1, 2, 16)})


def test_pooling_skips_padding_on_either_side():
    hidden = torch.arange(10.0).reshape(2, 5, 1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    assert pool(hidden, mask, "first").flatten().tolist() == [0, 7]
    assert pool(hidden, mask, "last").flatten().tolist() == [2, 9]
    assert pool(hidden, mask, "mean").flatten().tolist() == [1, 8]


def test_a_head_hangs_on_its_generator_alone():
    first = Head(8, 3, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    second = Head(8, 3, generator=torch.Generator().manual_seed(5))
    other = Head(8, 3, generator=torch.Generator().manual_seed(6))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.out.weight, other.out.weight)


def test_a_head_computes_in_float32_whatever_it_reads():
    head = Head(8, 3)
    hidden = torch.randn(2, 8).bfloat16()
    assert head(hidden).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(hidden).dtype == torch.bfloat16


def test_a_head_is_dropout_dense_tanh_dropout_out():
    head = Head(8, 3, dropout=0.5).eval()
    x = torch.randn(4, 8)
    assert head.dense is not None
    assert torch.allclose(head(x), head.out(torch.tanh(head.dense(x))))
    assert torch.equal(Head.apply(head.state_dict(), x), head(x))
    assert not torch.equal(head.train()(x), head(x))


def test_a_linear_head_is_dropout_out():
    head = Head(8, 3, dropout=0.5, head="linear").eval()
    x = torch.randn(4, 8).bfloat16()
    assert torch.equal(head(x), head.out(x.float()))
    assert torch.equal(Head.apply(head.state_dict(), x), head(x))
    assert not torch.equal(head.train()(x), head(x))
    assert sum(tensor.numel() for tensor in head.state_dict().values()) == 3 * (8 + 1)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pad", [1, 2], ids=["a token of its own", "the end token"])
def test_real_tokens_without_a_mask(left, pad):
    """Between the padding at both ends; a padding token in the text is text."""
    rows = [[5, pad, 7, 8], [9], []]
    width = 6
    padded = [[pad] * (width - len(r)) + r if left else r + [pad] * (width - len(r)) for r in rows]
    mask = real_tokens(torch.tensor(padded), pad)
    assert mask.sum(1).tolist() == [4, 1, 0]
    assert [row[m].tolist() for row, m in zip(torch.tensor(padded), mask, strict=True)] == rows
    assert real_tokens(torch.tensor(padded), None) is None


@pytest.mark.parametrize("name", ["bart", "t5", "bert", "llama"])
def test_padding_is_not_read_for_a_token_without_a_mask_either(models, name):
    model = models[name]
    model.config.pad_token_id = 1
    ids = torch.tensor([[5, 6, 7, 1, 1], [8, 9, 10, 11, 12]])
    given = features(model, {"input_ids": ids, "attention_mask": (ids != 1).long()}).mask
    assert torch.equal(features(model, {"input_ids": ids}).mask.bool(), given.bool())
