"""Extraction: one BIO tag for every word of a sentence."""

from __future__ import annotations

import re
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
TAG = re.compile("[BIES]-.+", re.DOTALL)
"""Other tags, in BIO or IOBES."""


@dataclass(frozen=True)
class Extraction(HeadedKind):
    """Kind with examples {"tokens", "ner_tags"}: words and their BIO tags.

    A word's tag is predicted and trained at its first sub-word. Words that truncation cut off are predicted as "O".

    Args:
        labels: all tags, including "O", in the order of the logits.
        features: "auto" (the decoder if there is one), "encoder" or "decoder".
        head: "dense", a layer of the backbone's width before the output layer, as in BART's own classifier, or
            "linear", the output layer only.
    """

    kind: ClassVar[str] = "extraction"
    labels: tuple[str, ...] = ()
    features: str = "auto"
    head: str = "dense"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", base.check_labels("Extraction", self.labels))
        if OUTSIDE not in self.labels:
            raise ValueError(f'Extraction: labels must contain "O", not {list(self.labels)!r}')
        if foreign := [label for label in self.labels if label != OUTSIDE and not TAG.fullmatch(label)]:
            raise ValueError(
                f'Extraction: {foreign[0]!r} is neither "O" nor B, I, E or S with a hyphen and a type, and would be '
                "scored wrongly: rename the tags, in BILOU for example L- to E- and U- to S-"
            )
        base.check_choice("Extraction", "features", self.features, ("auto", "encoder", "decoder"))
        base.check_choice("Extraction", "head", self.head, HEADS)

    @property
    def main_metric(self) -> str:
        """Entity F1."""
        return "f1"

    def encode_all(
        self, examples: Sequence[base.Example], tokenizer: Any, *, source_length: int, target_length: int
    ) -> list[base.Encoded]:
        """Return input_ids of the words joined by spaces; labels: tag index at a word's first sub-word, else -100.

        Without "ner_tags", first sub-words are labelled with the index of "O", so that `predict` finds them.
        """
        index = {label: i for i, label in enumerate(self.labels)}
        rows, starts = align([example["tokens"] for example in examples], tokenizer, source_length)
        for example, row, firsts in zip(examples, rows, starts, strict=True):
            tags = [OUTSIDE] * len(example["tokens"]) if example.get("ner_tags") is None else example["ner_tags"]
            if len(tags) != len(example["tokens"]):
                raise ValueError(
                    f"{len(tags)} tags for {len(example['tokens'])} words, which begin with {example['tokens'][:5]}: "
                    "give one tag for each word"
                )
            if unknown := sorted(set(tags) - set(index)):
                raise ValueError(f"tag {unknown[0]!r} is not one of {', '.join(self.labels)}")
            row["labels"] = [base.IGNORED] * len(row["input_ids"])
            for position, tag in zip(firsts, tags, strict=False):  # words cut off have no position
                row["labels"][position] = index[tag]
        return rows

    def collate(self, encoded: Sequence[base.Encoded], *, pad_id: int, multiple: int = base.PAD_MULTIPLE) -> base.Batch:
        """Return input_ids, attention_mask and labels, all (B, L)."""
        batch = base.pad_inputs(encoded, pad_id, multiple)
        if base.all_labelled(encoded):
            batch["labels"] = base.pad_rows([row["labels"] for row in encoded], base.IGNORED, multiple)
        return batch

    def make_head(self, hidden_size: int, dropout: float, generator: torch.Generator | None = None) -> nn.Module:
        """Create a `Head` with one output per tag, applied at every position."""
        return Head(hidden_size, len(self.labels), dropout, generator, self.head)

    def stack(self, model: Any) -> str:
        """Return the `features` setting."""
        return self.features

    def read(
        self,
        model: Any,
        head: base.HeadFunction,
        features: Features,
        labels: torch.Tensor | None = None,
        items: base.Items = None,
    ) -> TokenClassifierOutput:
        """Return logits (B, L, tags), and the mean cross-entropy over first sub-words."""
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
        """Return the same loss, applying the head to first sub-words only."""
        hidden = self.features_of(model, inputs, call).hidden
        labels = self._check(labels, hidden)
        chosen = labels != base.IGNORED
        return base.mean_loss(self._checked(head)(hidden[chosen]), labels[chosen])

    def _check(self, labels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return base.check_targets(labels, hidden.shape[:2], len(self.labels), "an extraction task")

    def decode(
        self, logits: torch.Tensor, batch: base.Batch, examples: Sequence[base.Example] | None = None
    ) -> list[list[str]]:
        """Return one tag per word, predicted at the first sub-words that the batch's labels mark.

        With `examples`, every row has one tag for each word of its example; without, it ends with the last word that
        was not cut off (`score` then uses "O" for the rest).
        """
        best, marks = logits.argmax(-1).tolist(), _marks(batch)
        tags = [
            [self.labels[i] for i, marked in zip(*row, strict=True) if marked] for row in zip(best, marks, strict=True)
        ]
        return tags if examples is None else pad_tags(tags, [len(example["tokens"]) for example in examples])

    def confidence(
        self, logits: torch.Tensor, batch: base.Batch, examples: Sequence[base.Example] | None = None
    ) -> list[dict[str, Any]]:
        """Return the probability of each word's tag; None for words that were cut off."""
        best, marks = logits.float().softmax(-1).amax(-1).tolist(), _marks(batch)
        found: list[list[float | None]] = [
            [value for value, marked in zip(*row, strict=True) if marked] for row in zip(best, marks, strict=True)
        ]
        if examples is not None:
            for row, example in zip(found, examples, strict=True):
                row += [None] * (len(example["tokens"]) - len(row))
        return [{"confidence": row} for row in found]

    def references(self, examples: Sequence[base.Example]) -> list[list[str]]:
        """Return the tags of every word."""
        return [list(example["ner_tags"]) for example in examples]

    def score(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Return {"f1", "precision", "recall"} of entities, 0 to 100; words missing at a row's end count as "O"."""
        return metrics.score(pad_tags(predictions, [len(row) for row in references]), references)

    def signature(self) -> str:
        """Return seqeval's version and mode."""
        return metrics.signature()


def _marks(batch: base.Batch) -> list[list[bool]]:
    """Return where a batch has the first tokens of words."""
    if "labels" not in batch:
        raise ValueError(
            "a batch without labels does not say where words begin: encode the examples with this kind, which labels "
            'first tokens even without "ner_tags"'
        )
    return (batch["labels"] != base.IGNORED).tolist()


def pad_tags(tags: Sequence[Sequence[str]], lengths: Sequence[int]) -> list[list[str]]:
    """Pad rows of tags with "O" to the given lengths."""
    return [[*row, *[OUTSIDE] * (length - len(row))] for row, length in zip(tags, lengths, strict=True)]


def align(words: Sequence[Sequence[str]], tokenizer: Any, length: int) -> tuple[list[base.Encoded], list[list[int]]]:
    """Return token ids of sentences given as words, and `starts[i][w]`: word w's first token, for words not cut off.

    Words are joined by spaces and located by their character offsets, so that a word gets the same tokens as in running
    text: tokenizers that are given split words drop the space before a word unless they were created to add it.

    Raises:
        ValueError: the tokenizer has no offsets (it is not a fast one), or gives no token to a word or its replacement.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"extraction needs a fast tokenizer with character offsets, but {type(tokenizer).__name__} has none"
        )
    rows, starts = _tokenize(words, tokenizer, length)
    # A word that the tokenizer's normalizer removes (a lone zero-width joiner) would shift all words after it.
    whole = [len(row["input_ids"]) < length for row in rows]
    gaps = [i for i, row in enumerate(starts) if None in row or (whole[i] and len(row) < len(words[i]))]
    if gaps:
        blank = tokenizer.unk_token or "?"
        filled = [_fill(words[i], starts[i], blank, whole[i]) for i in gaps]
        for i, row, firsts in zip(gaps, *_tokenize(filled, tokenizer, length), strict=True):
            if None in firsts:
                raise ValueError(f"the tokenizer produces no token for the word {words[i][firsts.index(None)]!r}")
            rows[i], starts[i] = row, firsts
    return rows, starts  # type: ignore[return-value]


def _fill(words: Sequence[str], firsts: Sequence[int | None], blank: str, whole: bool) -> list[str]:
    """Replace words without a token by `blank`; at the end of a row only if nothing was cut off (`whole`)."""
    lost = [first is None for first in firsts] + [whole] * (len(words) - len(firsts))
    return [blank if gone else word for word, gone in zip(words, lost, strict=True)]


def _tokenize(
    words: Sequence[Sequence[str]], tokenizer: Any, length: int
) -> tuple[list[base.Encoded], list[list[int | None]]]:
    """Return the result of `align`, but with None for a word without a token that is followed by a word with one."""
    texts = [" ".join(row) for row in words]
    encoding = tokenizer(texts, truncation=True, max_length=length, return_offsets_mapping=True)
    starts = [first_tokens(row, offsets) for row, offsets in zip(words, encoding["offset_mapping"], strict=True)]
    return base.model_inputs(encoding), starts


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Return the index of each word's first token from (start, end) character offsets into the words joined by spaces.

    A token belongs to the first word that it overlaps; tokens with empty offsets (special tokens) belong to none. The
    list ends with the last word that has a token; earlier words without a token are None.
    """
    firsts: list[int | None] = []
    word, begin = 0, 0  # the current word, and its first character
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
