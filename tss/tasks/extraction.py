"""Extraction: one BIO tag for every word of a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_outputs import TokenClassifierOutput

from tss.metrics import extraction as metrics
from tss.tasks import base
from tss.tasks.headed import HeadedKind
from tss.tasks.heads import HEADS, Call, Features, Head

OUTSIDE = "O"


@dataclass(frozen=True)
class Extraction(HeadedKind):
    """Examples {"tokens", "ner_tags"}: words and their BIO tags.

    A word is read off, and trained, at its first sub-word. Predictions of words that truncation cut off are "O".

    Args:
        labels: all tags, in the order of the logits; "O" is one of them.
        features: "auto" (the decoder if there is one), "encoder" or "decoder".
        head: "dense", a layer of the backbone's width before the outputs as in BART's own classifier, or "linear", the
            outputs alone.
    """

    kind: ClassVar[str] = "extraction"
    labels: tuple[str, ...] = ()
    features: str = "auto"
    head: str = "dense"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", base.check_labels("Extraction", self.labels))
        if OUTSIDE not in self.labels:
            raise ValueError(f'Extraction: labels must hold "O", not {list(self.labels)!r}')
        base.check_choice("Extraction", "features", self.features, ("auto", "encoder", "decoder"))
        base.check_choice("Extraction", "head", self.head, HEADS)

    @property
    def main_metric(self) -> str:
        """Entity F1."""
        return "f1"

    def encode_all(
        self, examples: Sequence[base.Example], tokenizer: Any, *, source_length: int, target_length: int
    ) -> list[base.Encoded]:
        """input_ids of the words joined by blanks; labels: a tag's index at each word's first sub-word, else -100.

        Without "ner_tags" the index of "O" marks the first sub-words, so that `predict` finds them.
        """
        index = {label: i for i, label in enumerate(self.labels)}
        rows, starts = align([example["tokens"] for example in examples], tokenizer, source_length)
        for example, row, firsts in zip(examples, rows, starts, strict=True):
            tags = example.get("ner_tags") or [OUTSIDE] * len(example["tokens"])
            if unknown := sorted(set(tags) - set(index)):
                raise ValueError(f"tag {unknown[0]!r} is not one of {', '.join(self.labels)}")
            row["labels"] = [base.IGNORED] * len(row["input_ids"])
            for position, tag in zip(firsts, tags, strict=False):  # words cut off have no position
                row["labels"][position] = index[tag]
        return rows

    def collate(self, encoded: Sequence[base.Encoded], *, pad_id: int, multiple: int = base.PAD_MULTIPLE) -> base.Batch:
        """input_ids, attention_mask and labels, all (B, L)."""
        batch = base.pad_inputs(encoded, pad_id, multiple)
        if base.all_labelled(encoded):
            batch["labels"] = base.pad_rows([row["labels"] for row in encoded], base.IGNORED, multiple)
        return batch

    def make_head(self, hidden_size: int, dropout: float, generator: torch.Generator | None = None) -> nn.Module:
        """A `Head` with one output per tag, applied at every position."""
        return Head(hidden_size, len(self.labels), dropout, generator, self.head)

    def stack(self, model: Any) -> str:
        """The `features` setting."""
        return self.features

    def read(
        self,
        model: Any,
        head: base.HeadFunction,
        features: Features,
        labels: torch.Tensor | None = None,
        items: base.Items = None,
    ) -> TokenClassifierOutput:
        """logits (B, L, tags), and the mean cross-entropy over first sub-words."""
        if labels is not None:
            labels = self._check(labels, features.hidden)
        logits = head(features.hidden)
        loss: Any = None if labels is None else base.mean_loss(logits, labels, items)
        return TokenClassifierOutput(loss, logits, features.hidden_states, features.attentions)  # type: ignore[arg-type]

    def loss(
        self,
        model: nn.Module,
        head: base.HeadFunction | None,
        inputs: Mapping[str, Any],
        labels: torch.Tensor,
        *,
        call: Call | None = None,
    ) -> torch.Tensor:
        """The same loss; the head reads first sub-words alone."""
        hidden = self.features_of(model, inputs, call).hidden
        labels = self._check(labels, hidden)
        chosen = labels != base.IGNORED
        return base.mean_loss(self._checked(head)(hidden[chosen]), labels[chosen])

    def _check(self, labels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return base.check_targets(labels, hidden.shape[:2], len(self.labels), "an extraction task")

    def decode(
        self, logits: torch.Tensor, batch: base.Batch, examples: Sequence[base.Example] | None = None
    ) -> list[list[str]]:
        """One tag per word, read at the first sub-words that the batch's labels mark.

        With `examples` every row is as long as its example has words; without, it ends with the last word not cut off
        (`score` then takes "O" for the rest).
        """
        best = logits.argmax(-1).tolist()
        marks = (batch["labels"] != base.IGNORED).tolist()
        tags = [
            [self.labels[i] for i, marked in zip(*row, strict=True) if marked] for row in zip(best, marks, strict=True)
        ]
        return tags if examples is None else pad_tags(tags, [len(example["tokens"]) for example in examples])

    def confidence(
        self, logits: torch.Tensor, batch: base.Batch, examples: Sequence[base.Example] | None = None
    ) -> list[dict[str, Any]]:
        """The probability of each word's tag; None for words that were cut off."""
        best = logits.float().softmax(-1).amax(-1).tolist()
        marks = (batch["labels"] != base.IGNORED).tolist()
        found: list[list[float | None]] = [
            [value for value, marked in zip(*row, strict=True) if marked] for row in zip(best, marks, strict=True)
        ]
        if examples is not None:
            for row, example in zip(found, examples, strict=True):
                row += [None] * (len(example["tokens"]) - len(row))
        return [{"confidence": row} for row in found]

    def references(self, examples: Sequence[base.Example]) -> list[list[str]]:
        """The tags of every word."""
        return [list(example["ner_tags"]) for example in examples]

    def score(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """{"f1", "precision", "recall"} of entities, 0 to 100; words missing at the end of a row count as "O"."""
        return metrics.score(pad_tags(predictions, [len(row) for row in references]), references)

    def signature(self) -> str:
        """seqeval's version and mode."""
        return metrics.signature()


def pad_tags(tags: Sequence[Sequence[str]], lengths: Sequence[int]) -> list[list[str]]:
    """Rows of tags completed with "O" to the lengths asked for."""
    return [[*row, *[OUTSIDE] * (length - len(row))] for row, length in zip(tags, lengths, strict=True)]


def align(words: Sequence[Sequence[str]], tokenizer: Any, length: int) -> tuple[list[base.Encoded], list[list[int]]]:
    """Token ids of sentences given as words, and `starts[i][w]`: word w's first token, for the words not cut off.

    Words are joined by blanks and found again by their character offsets. So a word gets the tokens it has in running
    text; tokenizers that are handed split words drop the blank in front of a word unless they were built to add it.

    Raises:
        ValueError: the tokenizer knows no offsets (it is not a fast one), or gives a word no token whatever.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"extraction needs a fast tokenizer with character offsets, {type(tokenizer).__name__} has none"
        )
    rows, starts = _tokenize(words, tokenizer, length)
    # A word that the tokenizer's normaliser removes (a lone zero-width joiner) would shift all words after it.
    whole = [len(row["input_ids"]) < length for row in rows]
    gaps = [i for i, row in enumerate(starts) if None in row or (whole[i] and len(row) < len(words[i]))]
    if gaps:
        blank = tokenizer.unk_token or "?"
        filled = [_fill(words[i], starts[i], blank, whole[i]) for i in gaps]
        for i, row, firsts in zip(gaps, *_tokenize(filled, tokenizer, length), strict=True):
            if None in firsts:
                raise ValueError(f"the tokenizer gives no token to the word {words[i][firsts.index(None)]!r}")
            rows[i], starts[i] = row, firsts
    return rows, starts  # type: ignore[return-value]


def _fill(words: Sequence[str], firsts: Sequence[int | None], blank: str, whole: bool) -> list[str]:
    """The words with `blank` for those without a token; at the end of a row only if nothing was cut off (`whole`)."""
    lost = [first is None for first in firsts] + [whole] * (len(words) - len(firsts))
    return [blank if gone else word for word, gone in zip(words, lost, strict=True)]


def _tokenize(
    words: Sequence[Sequence[str]], tokenizer: Any, length: int
) -> tuple[list[base.Encoded], list[list[int | None]]]:
    """As `align`; None for a word without a token that is followed by a word with one."""
    texts = [" ".join(row) for row in words]
    encoding = tokenizer(texts, truncation=True, max_length=length, return_offsets_mapping=True)
    starts = [first_tokens(row, offsets) for row, offsets in zip(words, encoding["offset_mapping"], strict=True)]
    return base.model_inputs(encoding), starts


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The index of each word's first token, by (start, end) character offsets into the words joined by blanks.

    A token belongs to the first word it overlaps; empty offsets (special tokens) to none. The list ends with the last
    word that has a token; a word before it without one is None.
    """
    firsts: list[int | None] = []
    word, begin = 0, 0  # the word being looked at, and its first character
    for position, (start, end) in enumerate(offsets):
        while word < len(words) and start >= begin + len(words[word]):
            begin += len(words[word]) + 1
            word += 1
        if word == len(words):
            break
        if start < end and end > begin and len(firsts) <= word:
            firsts += [None] * (word - len(firsts))
            firsts.append(position)
    return firsts
