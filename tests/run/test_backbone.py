"""Backbones by name, and messages that say what to do when one cannot be had."""

from __future__ import annotations

import pytest
import torch
import transformers

from tss.errors import ConfigError
from tss.run.backbone import (
    BART_TOKENIZER,
    bart_large_config,
    check_lengths,
    load_backbone,
    resolve_device,
    resolve_precision,
)
from tss.run.config import load_config
from tss.run.runtime import Runtime
from tss.run.sequence import run_sequence
from tss.seeding import seed_of

from .conftest import tiny_values


def test_a_folder_gives_model_and_tokenizer_in_the_precision_asked_for(tiny_backbone):
    backbone = load_backbone(str(tiny_backbone), precision="bfloat16")
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}
    assert not backbone.model.training
    assert backbone.origin == str(tiny_backbone)
    assert len(backbone.tokenizer) <= backbone.model.config.vocab_size


def test_encoders_and_causal_models_load_too(tmp_path, tiny_tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = transformers.BertConfig(vocab_size=64, **sizes)
    llama = transformers.LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)
    for name, model in (
        ("bert", transformers.BertForMaskedLM(bert)),
        ("llama", transformers.LlamaForCausalLM(llama)),
    ):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    assert type(load_backbone(str(tmp_path / "bert")).model).__name__ == "BertModel"
    assert type(load_backbone(str(tmp_path / "llama")).model).__name__ == "LlamaForCausalLM"


def test_bart_large_offline_names_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(ConfigError, match=r"facebook/bart-large cannot be loaded .*backbone=bart-large-random"):
        load_backbone("bart-large")


@pytest.fixture
def small_bart_large(monkeypatch):
    """The name bart-large-random with a shape that is built in no time, but BART's vocabulary."""
    config = bart_large_config()
    assert (config.d_model, config.encoder_layers, config.decoder_layers, config.vocab_size) == (1024, 12, 12, 50265)
    small = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    config = transformers.BartConfig(**small, encoder_attention_heads=2, decoder_attention_heads=2)
    monkeypatch.setattr("tss.run.backbone.bart_large_config", lambda: config)


def test_bart_large_random_is_seeded_and_says_whose_tokenizer_it_took(
    small_bart_large, monkeypatch, tmp_path, tiny_tokenizer
):
    tiny_tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv(BART_TOKENIZER, str(tmp_path))
    before = torch.random.get_rng_state()
    first, again, other = (load_backbone("bart-large-random", seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)
    assert first.config.vocab_size == 50265
    assert f"{BART_TOKENIZER}={tmp_path}" in load_backbone("bart-large-random").origin
    monkeypatch.setenv(BART_TOKENIZER, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"tokenizer: .*nowhere cannot be loaded"):
        load_backbone("bart-large-random")


def test_the_embedded_tokenizer_stands_in_and_the_origin_says_so(small_bart_large, monkeypatch, tiny_backbone):
    monkeypatch.delenv(BART_TOKENIZER, raising=False)
    monkeypatch.setattr("tss.run.backbone.embedded_folder", lambda: tiny_backbone)
    assert "with the embedded backbone's tokenizer" in load_backbone("bart-large-random").origin


def test_a_tokenizer_that_does_not_fit_is_refused(tiny_backbone, tmp_path, tiny_tokenizer):
    larger = tiny_tokenizer.__class__.from_pretrained(tiny_backbone)
    larger.add_tokens([f"word{i}" for i in range(100)])
    larger.save_pretrained(tmp_path)
    rows = len(tiny_tokenizer)
    with pytest.raises(ConfigError, match=f"{rows + 100} entries, but the model embeds {rows}"):
        load_backbone(str(tiny_backbone), tokenizer=str(tmp_path))


def test_what_is_no_backbone_is_said(tmp_path):
    with pytest.raises(ConfigError, match="is not a model folder"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "near"), [("embeded", "embedded"), ("embedded_random", "embedded-random"), ("bart-lage", "bart-large")]
)
def test_a_misspelt_name_is_not_looked_up_on_the_hub(name, near, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda _: pytest.fail("the hub was asked"))
    with pytest.raises(ConfigError, match=f"no backbone '{name}'; did you mean '{near}'"):
        load_backbone(name)


def test_lengths_beyond_the_positions_are_refused(tiny_bart):
    check_lengths(tiny_bart, "sum/a", source_length=64, target_length=64)
    with pytest.raises(ConfigError, match="task sum/a: target_length is 65, but the backbone has 64 positions"):
        check_lengths(tiny_bart, "sum/a", source_length=64, target_length=65)


def test_device_and_precision_are_resolved():
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="no device 'gpu0'"):
        resolve_device("gpu0")
    assert resolve_precision("float32", cpu) == "float32"
    x = torch.ones(2, 2)
    with Runtime(cpu, "bfloat16").autocast():
        assert (x @ x).dtype == torch.bfloat16
    with Runtime(cpu, "float32").autocast():
        assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize("units", [{"amx_bf16": True}, {"avx512_bf16": True}, {}])
def test_every_processor_computes_in_float32_unless_told_otherwise(monkeypatch, units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert resolve_precision("auto", torch.device("cpu")) == "float32"
    assert resolve_precision("bfloat16", torch.device("cpu")) == "bfloat16"


def test_seeds_depend_on_their_parts_alone():
    assert seed_of(2021, "asc/a", 0, 1, 0) == seed_of(2021, "asc/a", 0, 1, 0)
    parts = [(2021, "asc/a", e, s, p) for e in range(3) for s in range(12) for p in range(2)]
    assert len({seed_of(*part) for part in parts}) == len(parts)
    assert 0 <= seed_of("x") < 2**63


def test_the_embedded_backbone_is_small_and_knows_more_than_its_shape():
    backbone = load_backbone("embedded")
    assert 7_000_000 < backbone.parameters < 8_000_000
    words = backbone.tokenizer("The captain ordered his crew to lower the boat.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = float(backbone.model(input_ids=words, labels=words).loss)
        untrained = float(load_backbone("embedded-random").model(input_ids=words, labels=words).loss)
    assert loss < untrained - 2, "nats per token, of a sentence to be reproduced"


def test_a_run_on_an_encoder(tiny_data, tiny_tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(
        tmp_path / "encoder"
    )
    tiny_tokenizer.save_pretrained(tmp_path / "encoder")
    values = tiny_values(tmp_path / "encoder", tiny_data) | {"tasks": ["asc/phones", "ner/people"]}
    done = run_sequence(load_config(values), tmp_path / "run")
    assert done.matrix[1][0] == done.matrix[0][0]
    with pytest.raises(ConfigError, match=r"drg/trips on backbone .* need a language-model head"):
        run_sequence(load_config(values | {"tasks": ["drg/trips"]}), tmp_path / "other")
