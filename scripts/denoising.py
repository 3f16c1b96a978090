"""BART's noise for pretraining: text infilling, token masking, and batches with both."""

from __future__ import annotations

import numpy as np
import torch

BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 4
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MASKED_SHARE = 0.12  # fraction of tokens masked one for one, which the encoder itself predicts


def infill(
    tokens: np.ndarray, rng: np.random.Generator, ratio: float = 0.3, mean_span: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Apply BART's text infilling: spans of Poisson(3) tokens, each replaced by one <mask>; a span of 0 inserts one.

    Return the noised tokens and a bool array over the original ones: True where the token was removed.
    """
    budget = round(len(tokens) * ratio)
    pieces: list[np.ndarray] = []
    spans = []
    while budget > 0:
        span = min(int(rng.poisson(mean_span)), budget)
        spans.append(span)
        budget -= max(span, 1)
    starts = np.sort(rng.choice(len(tokens), size=len(spans), replace=False))
    position = 0
    mask = np.array([MASK], dtype=tokens.dtype)
    removed = np.zeros(len(tokens), dtype=bool)
    for start, span in zip(starts, rng.permutation(spans), strict=True):
        if start < position:  # overlaps the span before it
            continue
        pieces += [tokens[position:start], mask]
        position = start + int(span)
        removed[start:position] = True
    return np.concatenate([*pieces, tokens[position:]]), removed


def mask_tokens(noised: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Apply BART's token masking in addition: MASKED_SHARE of the tokens become <mask>. Return the tokens and where."""
    masked = (rng.random(len(noised)) < MASKED_SHARE) & (noised != MASK)
    return np.where(masked, MASK, noised), masked


def make_batch(
    stream: np.ndarray, rng: np.random.Generator, rows: int, length: int, copied_share: float
) -> dict[str, torch.Tensor]:
    """Return one batch. Labels are kept for removed tokens, and for `copied_share` of the tokens that were not removed.

    The vocabulary product and its softmax take a third of a step on a CPU, and copied tokens teach least.
    `encoder_labels` contains the tokens that were masked one for one, -100 elsewhere.
    """
    starts = rng.integers(0, len(stream) - length, size=rows)
    source = torch.full((rows, length), PAD)
    encoder_labels = torch.full((rows, length), -100)
    target = torch.full((rows, length), PAD)
    keep = torch.ones((rows, length), dtype=torch.bool)
    for row, start in enumerate(starts):
        chunk = np.asarray(stream[start : start + length - 2]).astype(np.int64)
        noised, removed = infill(chunk, rng)
        noised = noised[: length - 2]
        shown, masked = mask_tokens(noised, rng)
        source[row, : len(noised) + 2] = torch.from_numpy(np.concatenate([[BOS], shown, [EOS]]))
        encoder_labels[row, 1 : len(noised) + 1] = torch.from_numpy(np.where(masked, noised, -100))
        target[row] = torch.from_numpy(np.concatenate([[BOS], chunk, [EOS]]))
        keep[row, 1:-1] = torch.from_numpy(removed | (rng.random(len(chunk)) < copied_share))
    decoder_input = target.roll(1, dims=1)
    decoder_input[:, 0] = EOS
    return {
        "input_ids": source,
        "attention_mask": (source != PAD).long(),
        "decoder_input_ids": decoder_input,
        "labels": target,
        "keep": keep,
        "encoder_labels": encoder_labels,
    }
