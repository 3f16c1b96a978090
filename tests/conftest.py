"""Small models and tokenizers that all tests share; nothing here needs a network or a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two threads on tiny tensors cost more than they save, and much more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# In deterministic mode, which poisons outputs, PyTorch refuses cuBLAS unless its workspace is fixed.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

# Triton reads this when it is first imported, which any test of a whole run may be the first to do.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

WORDS = (
    "the a of and to in is was it he she they we you good bad great poor battery screen phone router camera price "
    "likes hates buys sells visits Paris London Berlin Alice Bob Carol works at Acme Globex hotel train taxi cheap"
).split()


def make_tiny_bart(vocabulary: int, layers: int):
    """A BART of width 16 with random weights from a fixed seed."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=vocabulary,
        d_model=16,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    return BartForConditionalGeneration(config)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real tasks, named by TSS_DATA_DIR."""
    folder = os.environ.get("TSS_DATA_DIR")
    if not folder:
        pytest.skip("TSS_DATA_DIR is not set: no real data on this machine")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A word-level tokenizer with BART's special tokens and pair template, 64 entries or fewer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=64,
    )


@pytest.fixture
def tiny_bart(tiny_tokenizer):
    """A two-layer BART of width 16 with random weights from a fixed seed; a new one for each test."""
    return make_tiny_bart(len(tiny_tokenizer), layers=2)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory, tiny_tokenizer) -> Path:
    """The same tiny BART and its tokenizer as a Hugging Face model folder."""
    folder = tmp_path_factory.mktemp("backbone")
    make_tiny_bart(len(tiny_tokenizer), layers=1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
