"""Tiny models of every architecture with random weights, and a stand-in for a model that routes to a head."""

from __future__ import annotations

import pytest
import torch

VOCABULARY = 64
ARCHITECTURES = ("bart", "t5", "bert", "llama")
TOKEN_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def _decoder_free(config_class, model_class):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return model_class(config_class(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes, **TOKEN_IDS)).eval()


@pytest.fixture
def models(tiny_bart):
    """name -> model: encoder-decoders "bart" and "t5", the encoder "bert", the decoder "llama"."""
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 32}
    config = hf.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=1, **sizes, **TOKEN_IDS)
    return {
        "bart": tiny_bart.eval(),
        "t5": hf.T5ForConditionalGeneration(config).eval(),
        "bert": _decoder_free(hf.BertConfig, hf.BertForMaskedLM),
        "llama": _decoder_free(hf.LlamaConfig, hf.LlamaForCausalLM),
    }


class Routed(torch.nn.Module):
    """Answers a batch for one task, as a model with that task active does."""

    def __init__(self, model, kind, head):
        super().__init__()
        self.model, self.kind, self.head = model, kind, head

    def forward(self, labels=None, **inputs):
        return self.kind.compute(self.model, self.head, inputs, labels)


@pytest.fixture
def routed(models):
    """(kind, name of a model) -> that model with a new head of that kind."""

    def build(kind, name="bart"):
        head = kind.make_head(16, 0.0, torch.Generator().manual_seed(0))
        return Routed(models[name], kind, head).eval()

    return build
