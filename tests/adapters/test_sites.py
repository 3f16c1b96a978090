"""Where adapters go."""

from __future__ import annotations

import re

import pytest
import torch
import transformers as hf

import tss
from tss.adapters import sites
from tss.adapters.config import PlainOptions
from tss.adapters.sites import MODEL_TYPES, PRESETS

from .conftest import ARCHITECTURES, TOPICS, make_bart, make_batch, make_gpt2


@pytest.mark.parametrize(
    ("name", "feed_forward", "attention"),
    [
        ("bart", "model.decoder.layers.1.final_layer_norm", "model.decoder.layers.1.self_attn_layer_norm"),
        ("t5", "decoder.block.1.layer.2.DenseReluDense", "decoder.block.1.layer.0.SelfAttention"),
        ("bert", "bert.encoder.layer.1.output", "bert.encoder.layer.1.attention.output"),
        ("roberta", "roberta.encoder.layer.1.output", "roberta.encoder.layer.1.attention.output"),
        ("llama", "model.layers.1.mlp", "model.layers.1.self_attn"),
    ],
)
def test_every_layer_gets_an_adapter_after_its_block(name, feed_forward, attention):
    layers = 4 if name in ("bart", "t5") else 2
    for placement, last, count in (
        ("feed_forward", [feed_forward], layers),
        ("attention", [attention], layers),
        ("both", [attention, feed_forward], 2 * layers),
    ):
        handle = tss.attach(ARCHITECTURES[name][0](), tss.AdapterConfig(bottleneck=4, placement=placement)).tss
        assert len(handle.adapters) == count
        assert set(last) <= set(handle.adapters)
        handle.add_task("topics", TOPICS)
        handle.train_task("topics")
        handle.model(**make_batch(TOPICS)).loss.backward()
        assert all(layer.scores.grad.abs().max() > 0 for layer in handle.layers.values())


def _config(model_type):
    sizes = {
        "hidden_size": 16, "d_model": 16, "num_hidden_layers": 1, "encoder_layers": 1, "decoder_layers": 1,
        "num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "num_heads": 2, "d_kv": 8, "d_ff": 32, "n_layer": 1, "n_embd": 16, "n_head": 2, "n_layers": 1, "dim": 16,
        "n_heads": 2, "hidden_dim": 32, "ffn_dim": 32, "word_embed_proj_dim": 16, "image_size": 8, "patch_size": 4,
        "attention_window": [4], "max_encoder_position_embeddings": 64, "embedding_size": 16, "pad_token_id": 1,
    }  # fmt: skip
    known = hf.AutoConfig.for_model(model_type).to_dict()
    settings = {key: value for key, value in sizes.items() if key in known}
    return hf.AutoConfig.for_model(model_type, vocab_size=64, decoder_start_token_id=1, **settings)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("placement", ["feed_forward", "attention"])
def test_the_preset_of_every_listed_type_finds_hidden_states(model_type, placement):
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(_config(model_type)).eval()
    handle = tss.attach(model, tss.AdapterConfig(bottleneck=4, placement=placement)).tss
    assert len(handle.adapters) == (2 if model.config.is_encoder_decoder else 1)
    model = handle.model
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    batch = make_batch(TOPICS)
    if model_type == "vit":
        batch = {"pixel_values": torch.randn(4, 3, 8, 8), "labels": batch["labels"]}
    output = model(**batch)
    assert output.logits.shape == (4, 2)


def test_presets_can_be_named():
    assert list(tss.attach(make_bart(), tss.AdapterConfig(preset="bart")).tss.adapters)
    with pytest.raises(ValueError, match=r"no module name of BartForConditionalGeneration matches .*it has model, "):
        tss.attach(make_bart(), tss.AdapterConfig(preset="t5"))
    assert set(MODEL_TYPES.values()) == set(PRESETS)


@pytest.mark.parametrize("pattern", [r"(.|\w)*\W", r"(\w|\.|[a-z])*[A-Z]", r"((\w|[a-z])+\.?)*[^a-z_]"])
def test_an_expression_that_tries_too_many_ways_is_refused(pattern, monkeypatch):
    monkeypatch.setattr(sites, "MOST_SECONDS", 0.2)
    for options in ({}, {"options": PlainOptions(trained="lora", targets=pattern)}):
        config = tss.AdapterConfig(gated=not options, sites=None if options else pattern)
        with pytest.raises(ValueError, match=r"tries too many ways to match .* write it without alternatives or"):
            tss.attach(make_bart(), config, **options)


def test_expressions_match_whole_names_as_re_does():
    names = ["", "encoder", "encoder.layers.0", "decoder.layers.10", "decoder.layers.10.fc2"]
    for pattern in (r"(en|de)coder\.layers\.\d+", r".*", r"(?i)ENCODER", r"(.*\.)?layers\.\d+\.fc[12]"):
        assert sites.matching(pattern, names) == [name for name in names if name and re.fullmatch(pattern, name)]


def test_a_type_without_preset_needs_sites():
    model = make_gpt2()
    model.config.model_type = "unheard-of"
    with pytest.raises(ValueError, match=r"no preset for a model of type 'unheard-of'.*transformer\.h\.1"):
        tss.attach(model)
    assert not any(module._forward_hooks for module in model.modules())
    handle = tss.attach(model, tss.AdapterConfig(sites=r"transformer\.h\.1\.mlp")).tss
    assert list(handle.adapters) == ["transformer.h.1.mlp"]
    assert list(handle.layers) == ["transformer.h.1.mlp.down", "transformer.h.1.mlp.up"]


def test_widths_come_from_the_site_itself_where_it_knows():
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4, sites=r".*encoder\.layers\.0\.fc1")).tss
    assert [adapter.width for adapter in handle.adapters.values()] == [32]
    model = make_gpt2()
    handle = tss.attach(model, tss.AdapterConfig(bottleneck=4, sites=r".*0\.mlp\.c_fc")).tss
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    with pytest.raises(
        ValueError, match=r"site transformer\.h\.0\.mlp\.c_fc outputs 64 features where 16 were expected"
    ):
        handle.model(**make_batch(TOPICS))


def test_containers_are_no_sites():
    model = make_gpt2()
    model.transformer.h[0].mlp = torch.nn.Sequential(model.transformer.h[0].mlp)
    with pytest.raises(ValueError, match=r"h\.0\.mlp is a Sequential; match its last module"):
        tss.attach(model, tss.AdapterConfig(sites=r".*0\.mlp"))
