"""Classification: one label for a text, or for an aspect of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from tss.metrics import classification as metrics
from tss.tasks import base
from tss.tasks.headed import HeadedKind
from tss.tasks.heads import HEADS, Features, Head, architecture, pool

# features -> (stack, pooling); "auto" depends on the architecture
PLANS = {
    "encoder_mean": ("encoder", "mean"),
    "encoder_first": ("encoder", "first"),
    "decoder_last": ("decoder", "last"),
}
AUTO = {"encoder-decoder": "decoder_last", "decoder": "decoder_last", "encoder": "encoder_first"}


@dataclass(frozen=True)
class Classification(HeadedKind):
    """Kind with examples {"text", "label"} and an optional "aspect", which is encoded as a separate first segment.

    Args:
        labels: all class names, in the order of the logits.
        metric: the main metric, "macro_f1" or "accuracy".
        features: what the head reads. "auto": the decoder's last real token (encoder-decoder and decoder-only models)
            or the first token (encoders). Or "encoder_mean", "encoder_first", "decoder_last".
        head: "dense", a layer of the backbone's width before the output layer, as in BART's own classifier, or
            "linear", the output layer only.
    """

    kind: ClassVar[str] = "classification"
    labels: tuple[str, ...] = ()
    metric: str = "macro_f1"
    features: str = "auto"
    head: str = "dense"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", base.check_labels("Classification", self.labels))
        base.check_choice("Classification", "metric", self.metric, metrics.METRICS)
        base.check_choice("Classification", "features", self.features, ("auto", *PLANS))
        base.check_choice("Classification", "head", self.head, HEADS)

    @property
    def main_metric(self) -> str:
        """The `metric` setting."""
        return self.metric

    def encode_all(
        self, examples: Sequence[base.Example], tokenizer: Any, *, source_length: int, target_length: int
    ) -> list[base.Encoded]:
        """Return input_ids of the text, or of the pair (aspect, text); labels is a list of one class index."""
        rows: list[base.Encoded] = [{}] * len(examples)
        for with_aspect in (False, True):
            chosen = [i for i, example in enumerate(examples) if (example.get("aspect") is not None) == with_aspect]
            if not chosen:
                continue
            texts = [examples[i]["text"] for i in chosen]
            segments = ([examples[i]["aspect"].strip() for i in chosen], texts) if with_aspect else (texts,)
            encoding = tokenizer(*segments, truncation=True, max_length=source_length)
            for i, row in zip(chosen, base.model_inputs(encoding), strict=True):
                rows[i] = row
        index = {label: i for i, label in enumerate(self.labels)}
        for row, example in zip(rows, examples, strict=True):
            if "label" in example:
                if example["label"] not in index:
                    raise ValueError(f"label {example['label']!r} is not one of {', '.join(self.labels)}")
                row["labels"] = [index[example["label"]]]
        return rows

    def collate(self, encoded: Sequence[base.Encoded], *, pad_id: int, multiple: int = base.PAD_MULTIPLE) -> base.Batch:
        """Return input_ids and attention_mask (B, L), and labels (B,)."""
        batch = base.pad_inputs(encoded, pad_id, multiple)
        if base.all_labelled(encoded):
            batch["labels"] = torch.tensor([row["labels"][0] for row in encoded], dtype=torch.long)
        return batch

    def make_head(self, hidden_size: int, dropout: float, generator: torch.Generator | None = None) -> nn.Module:
        """Create a `Head` with one output per label."""
        return Head(hidden_size, len(self.labels), dropout, generator, self.head)

    def stack(self, model: Any) -> str:
        """Return "encoder" or "decoder", according to the `features` setting."""
        return self._plan(model)[0]

    def read(
        self,
        model: Any,
        head: base.HeadFunction,
        features: Features,
        labels: torch.Tensor | None = None,
        items: base.Items = None,
    ) -> SequenceClassifierOutput:
        """Return logits (B, classes) of the pooled hidden states, and the mean cross-entropy."""
        hidden, mask, *rest = features
        if labels is not None:
            labels = base.check_targets(labels, hidden.shape[:1], len(self.labels), "a classification task")
        logits = head(pool(hidden, mask, self._plan(model)[1]))
        loss: Any = None if labels is None else base.mean_loss(logits, labels, items)
        return SequenceClassifierOutput(loss, logits, *rest)

    def _plan(self, model: Any) -> tuple[str, str]:
        return PLANS[AUTO[architecture(model)] if self.features == "auto" else self.features]

    def decode(
        self, logits: torch.Tensor, batch: base.Batch, examples: Sequence[base.Example] | None = None
    ) -> list[str]:
        """Return the label with the largest logit of each row."""
        return [self.labels[i] for i in logits.argmax(-1).tolist()]

    def confidence(
        self, logits: torch.Tensor, batch: base.Batch, examples: Sequence[base.Example] | None = None
    ) -> list[dict[str, Any]]:
        """Return the largest probability, and the probability of each label."""
        rows = logits.float().softmax(-1).tolist()
        return [{"confidence": max(row), "scores": dict(zip(self.labels, row, strict=True))} for row in rows]

    def references(self, examples: Sequence[base.Example]) -> list[str]:
        """Return the labels."""
        return [example["label"] for example in examples]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Return {"macro_f1", "accuracy"}, 0 to 100."""
        return metrics.score(predictions, references)

    def signature(self) -> str:
        """Return scikit-learn's version and averaging."""
        return metrics.signature()
