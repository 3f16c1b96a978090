"""Generation: a text from a text, by the model's own frozen language-model head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from tss.metrics import generation as metrics
from tss.tasks import base
from tss.tasks.vocabulary import vocabulary_loss


@dataclass(frozen=True)
class Generation(base.TaskKind):
    """Examples {"source", "target"}; nothing but the adapters is trained.

    Args:
        metric: the main metric: "rouge1", "rouge2", "rougeL" or "bleu".
        num_beams: width of the beam search, 1 is greedy.
        min_new_tokens, max_new_tokens: bounds of the generated length; the model's positions are a bound too.
        no_repeat_ngram_size: n-grams of this size occur at most once in an output; 0 allows all.
    """

    kind: ClassVar[str] = "generation"
    metric: str = "rouge1"
    num_beams: int = 4
    min_new_tokens: int = 0
    max_new_tokens: int = 128
    no_repeat_ngram_size: int = 3

    def __post_init__(self) -> None:
        base.check_choice("Generation", "metric", self.metric, metrics.METRICS)
        for key, least in (("num_beams", 1), ("min_new_tokens", 0), ("max_new_tokens", 1), ("no_repeat_ngram_size", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"Generation: {key}={getattr(self, key)} must be at least {least}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"Generation: min_new_tokens={self.min_new_tokens} exceeds max_new_tokens={self.max_new_tokens}"
            )

    @property
    def main_metric(self) -> str:
        """The `metric` setting."""
        return self.metric

    def encode_all(
        self, examples: Sequence[base.Example], tokenizer: Any, *, source_length: int, target_length: int
    ) -> list[base.Encoded]:
        """input_ids of the source; labels are the target's ids, cut to `target_length`."""
        sources = [example["source"] for example in examples]
        rows = base.model_inputs(tokenizer(sources, truncation=True, max_length=source_length))
        answered = [i for i, example in enumerate(examples) if "target" in example]
        if answered:
            targets = [examples[i]["target"] for i in answered]
            encoding = tokenizer(text_target=targets, truncation=True, max_length=target_length)
            for i, ids in zip(answered, encoding["input_ids"], strict=True):
                rows[i]["labels"] = ids
        return rows

    def collate(self, encoded: Sequence[base.Encoded], *, pad_id: int, multiple: int = base.PAD_MULTIPLE) -> base.Batch:
        """input_ids and attention_mask (B, L), labels (B, M)."""
        batch = base.pad_inputs(encoded, pad_id, multiple)
        if base.all_labelled(encoded):
            batch["labels"] = base.pad_rows([row["labels"] for row in encoded], base.IGNORED, multiple)
        return batch

    def check_model(self, model: Any) -> None:
        """Only encoder-decoders keep source and target apart, as labels of this kind do."""
        if not model.config.is_encoder_decoder:
            raise ValueError(f"generation tasks need an encoder-decoder model, not {type(model).__name__}")

    def make_head(self, hidden_size: int, dropout: float, generator: torch.Generator | None = None) -> None:
        """None: the language-model head serves."""
        return None

    def compute(
        self,
        model: nn.Module,
        head: nn.Module | None,
        inputs: Mapping[str, torch.Tensor],
        labels: torch.Tensor | None = None,
    ) -> Any:
        """The model's own forward."""
        return model(**inputs, labels=labels)

    def loss(
        self, model: nn.Module, head: nn.Module | None, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        """The same loss, with logits at the labels alone where the model's head is known to be linear and frozen."""
        loss = vocabulary_loss(model, inputs, labels)
        return super().loss(model, head, inputs, labels) if loss is None else loss

    @torch.no_grad()
    def predict(
        self,
        model: nn.Module,
        batch: base.Batch,
        tokenizer: Any,
        *,
        examples: Sequence[base.Example] | None = None,
    ) -> list[str]:
        """Beam search with this kind's settings; special tokens and outer blanks are removed.

        Raises:
            ValueError: the model has no decoder that reads an encoder.
        """
        network: Any = model
        self.check_model(network)
        positions = getattr(network.config, "max_position_embeddings", None)  # None: relative positions, no bound
        most = self.max_new_tokens if positions is None else min(self.max_new_tokens, positions - 1)
        ids = network.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            num_beams=self.num_beams,
            do_sample=False,
            early_stopping=self.num_beams > 1,
            min_new_tokens=min(self.min_new_tokens, most),
            max_new_tokens=most,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def references(self, examples: Sequence[base.Example]) -> list[str]:
        """The targets."""
        return [example["target"] for example in examples]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """{"rouge1", "rouge2", "rougeL", "bleu"}, 0 to 100."""
        return metrics.score(predictions, references)

    def signature(self) -> str:
        """ROUGE's settings and sacrebleu's signature."""
        return metrics.signature()
