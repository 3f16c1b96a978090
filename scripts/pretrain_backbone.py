#!/usr/bin/env python3
"""Pretrain the embedded backbone: a small BART, by BART's denoising, on free English text.

    python scripts/pretrain_backbone.py --text DIR --work DIR --minutes 80
    python scripts/pretrain_backbone.py --text DIR --work DIR --start-from tss/assets/backbone --minutes 60
    python scripts/pretrain_backbone.py --text DIR --work DIR --export tss/assets/backbone

DIR of --text holds *.txt or *.txt.xz, one passage per line. The run checkpoints into --work and goes on from there when
it is started again; the learning rate follows the share of --minutes that is spent, so a busy machine still ends with a
decayed learning rate. --export writes float16 weights, tokenizer and configuration as a Hugging Face model folder.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from denoising import BOS, EOS, PAD, SPECIAL, make_batch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

VOCABULARY = 8000
HELD_OUT_TOKENS = 200_000
TOKENS_A_STEP = 2048


# ---- text to tokens ------------------------------------------------------------------------------------------------


def passages(folder: Path) -> Iterator[str]:
    files = sorted(p for p in folder.iterdir() if p.name.endswith((".txt", ".txt.xz")))
    if not files:
        raise SystemExit(f"no *.txt or *.txt.xz in {folder}")
    for path in files:
        opener = lzma.open if path.suffix == ".xz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())


def train_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Every third passage is enough for 8,000 merges and keeps memory small.
    sample = (text for i, text in enumerate(passages(folder)) if i % 3 == 0)
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


def encode_corpus(tokenizer: Tokenizer, folder: Path) -> np.ndarray:
    """Return all passages as one uint16 stream, each ended by </s>, shuffled once with a fixed seed."""
    texts = list(passages(folder))
    np.random.default_rng(0).shuffle(texts)  # type: ignore[arg-type]
    parts = []
    for start in range(0, len(texts), 20_000):
        for encoding in tokenizer.encode_batch(texts[start : start + 20_000], add_special_tokens=False):
            parts.append(np.array([*encoding.ids, EOS], dtype=np.uint16))
    return np.concatenate(parts)


def prepare(text: Path, work: Path) -> tuple[PreTrainedTokenizerFast, np.ndarray]:
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokens.npy").exists():
        if not (work / "tokenizer.json").exists():
            train_tokenizer(text).save(str(work / "tokenizer.json"))
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
        np.save(work / "tokens.partial.npy", encode_corpus(tokenizer, text))
        os.replace(work / "tokens.partial.npy", work / "tokens.npy")
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=512,
    )
    return fast, np.load(work / "tokens.npy", mmap_mode="r")


# ---- the denoising objective ---------------------------------------------------------------------------------------


def denoising_losses(
    model: BartForConditionalGeneration, batch: dict[str, torch.Tensor], bfloat16: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean cross-entropies in nats: the decoder's at the kept positions, the encoder's at the masked ones.

    The vocabulary product, with tied weights for both, is computed only at those positions.
    """
    keep, labels, encoder_labels = (batch.pop(name) for name in ("keep", "labels", "encoder_labels"))
    masked = encoder_labels != -100
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        output = model.model(**batch)
        logits = model.lm_head(output.last_hidden_state[keep])
        encoder_logits = model.lm_head(output.encoder_last_hidden_state[masked])
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(logits.float(), labels[keep]), cross_entropy(encoder_logits.float(), encoder_labels[masked])


# ---- training ------------------------------------------------------------------------------------------------------


def new_model() -> BartForConditionalGeneration:
    torch.manual_seed(2021)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=256,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        max_position_embeddings=512,
        dropout=0.0,  # far less than one epoch over the text, so no overfitting; a frozen backbone needs none
        attention_dropout=0.0,
        activation_dropout=0.0,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=EOS,
    )
    return BartForConditionalGeneration(config)


def learning_rate(share: float, step: int, peak: float) -> float:
    """Return the learning rate: warm-up over 200 steps, and linear decay to zero with the share of the time budget."""
    return peak * min(1.0, (step + 1) / 200) * max(0.0, 1.0 - share)


def batch_shape(share: float, step: int, short_share: float) -> tuple[int, int, float]:
    """Return rows, length and share of copied tokens in the loss: TOKENS_A_STEP tokens, short rows first.

    Cross-attention learns to copy fastest on short rows with every token in the loss. Later rows have all lengths,
    because a model forgets lengths that it no longer sees; one step in eight trains all 512 positions.
    """
    if share < short_share:
        return TOKENS_A_STEP // 32, 32, 1.0
    if step % 8 == 7:
        return TOKENS_A_STEP // 512, 512, 0.25
    length = (16, 32, 64, 128)[step % 4]
    return TOKENS_A_STEP // length, length, 1.0 if length < 64 else 0.25


@torch.no_grad()
def held_out_losses(model: BartForConditionalGeneration, stream: np.ndarray, bfloat16: bool) -> dict[str, float]:
    """Return nats per token on held-out text, with fixed noise.

    All tokens and removed tokens, in rows of 128; all tokens in rows of 16; the encoder's masked tokens.
    """
    model.eval()
    means = {}
    for name, rows, length, copied_share in (
        ("held_out", 16, 128, 1.0),
        ("held_out_removed", 16, 128, 0.0),
        ("held_out_short", 128, 16, 1.0),
    ):
        rng = np.random.default_rng(1)
        batches = [make_batch(stream, rng, rows, length, copied_share) for _ in range(8)]
        losses = torch.stack([torch.stack(denoising_losses(model, batch, bfloat16)) for batch in batches]).mean(0)
        means[name] = round(float(losses[0]), 4)
        if name == "held_out":
            means["held_out_encoder"] = round(float(losses[1]), 4)
    model.train()
    return means


def save_checkpoint(work: Path, state: dict) -> None:
    torch.save(state, work / "checkpoint.partial")
    os.replace(work / "checkpoint.partial", work / "checkpoint.pt")


def load_weights(model: BartForConditionalGeneration, folder: Path) -> None:
    """Load the weights of an exported model folder; the optimizer state is not loaded."""
    model.load_state_dict(BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict())


def train(
    model: BartForConditionalGeneration,
    stream: np.ndarray,
    work: Path,
    minutes: float,
    peak: float,
    short_share: float,
    bfloat16: bool,
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
    )
    step, spent, tokens_seen = 0, 0.0, 0
    if (work / "checkpoint.pt").exists():
        state = torch.load(work / "checkpoint.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, tokens_seen = state["step"], state["spent"], state["tokens"]
    training, held_out = stream[:-HELD_OUT_TOKENS], stream[-HELD_OUT_TOKENS:]
    model.train()
    while spent < minutes * 60:
        began = time.perf_counter()
        rng = np.random.default_rng([2021, step])
        rows, length, copied_share = batch_shape(spent / (minutes * 60), step, short_share)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spent / (minutes * 60), step, peak)
        loss, encoder_loss = denoising_losses(model, make_batch(training, rng, rows, length, copied_share), bfloat16)
        (loss + encoder_loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise SystemExit(f"gradient norm {float(norm)} at step {step}: lower --peak-lr")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens_seen = step + 1, tokens_seen + rows * length
        spent += time.perf_counter() - began
        if step % 100 == 0 or spent >= minutes * 60:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(work, {**state, "step": step, "spent": spent, "tokens": tokens_seen})
            record = {
                "step": step,
                "minutes": round(spent / 60, 1),
                "tokens": tokens_seen,
                "loss": round(float(loss.detach()), 3),
            }
            if step % 500 == 0 or spent >= minutes * 60:
                record |= held_out_losses(model, held_out, bfloat16)
            print(json.dumps(record), flush=True)
            with open(work / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")


def export(model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, work: Path, folder: Path) -> None:
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    log = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    (folder / "pretraining.json").write_text(json.dumps(log[-1], indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--peak-lr", type=float, default=1.5e-3)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--start-from", type=Path, help="exported folder to continue from; its tokenizer is used too")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    arguments = parser.parse_args()
    if arguments.start_from:
        arguments.work.mkdir(parents=True, exist_ok=True)
        shutil.copy(arguments.start_from / "tokenizer.json", arguments.work)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    capabilities = torch.cpu.get_capabilities()
    bfloat16 = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    tokenizer, stream = prepare(arguments.text, arguments.work)
    model = new_model()
    if arguments.start_from:
        load_weights(model, arguments.start_from)
    if arguments.export:
        export(model, tokenizer, arguments.work, arguments.export)
    else:
        print(f"{model.num_parameters():,} parameters, {len(stream):,} tokens of text", flush=True)
        # A model that can copy already needs no phase with short rows only.
        short_share = 0.0 if arguments.start_from else 0.2
        train(model, stream, arguments.work, arguments.minutes, arguments.peak_lr, short_share, bfloat16)


if __name__ == "__main__":
    main()
