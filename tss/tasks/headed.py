"""Base class of kinds of tasks with their own head on the backbone's hidden states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tss.tasks.base import Batch, Example, HeadFunction, Items, TaskKind, without_labels
from tss.tasks.heads import Call, Features, Head, choose_stack, features


class HeadedKind(TaskKind):
    """Kind that applies a head to the last hidden states of one `stack` of the backbone, in `read`.

    Backbone and `read` are separate steps so that rows of different tasks can share one pass of the backbone.
    """

    @abstractmethod
    def stack(self, model: Any) -> str:
        """Return the stack that the head reads: "encoder", "decoder", or "auto" for the decoder if there is one."""

    @abstractmethod
    def read(
        self,
        model: Any,
        head: HeadFunction,
        features: Features,
        labels: torch.Tensor | None = None,
        items: Items = None,
    ) -> Any:
        """Apply the head; return a transformers output with `logits`, and `loss` if labels are given.

        Args:
            model: the backbone, for its architecture.
            head: hidden states (..., H) -> logits (..., outputs).
            features: features of the backbone.
            labels: labels as collated by the kind.
            items: number of labels to average the loss over, if more than this batch's; None: this batch's labels.
        """

    @abstractmethod
    def decode(self, logits: torch.Tensor, batch: Batch, examples: Sequence[Example] | None = None) -> list[Any]:
        """Return the predictions for logits, one per row.

        Args:
            logits: logits from `read` for the batch.
            batch: a batch from `collate`.
            examples: as in `predict`.
        """

    @abstractmethod
    def confidence(
        self, logits: torch.Tensor, batch: Batch, examples: Sequence[Example] | None = None
    ) -> list[dict[str, Any]]:
        """Return the softmax probabilities of the predictions of `decode`, one dict per row; not calibrated.

        Args:
            logits, batch, examples: as in `decode`.

        Returns:
            "confidence", the probability of the prediction: a list if the prediction has parts, with None for a part
            that was cut off; and "scores", label -> probability, if a row has a single distribution.
        """

    @torch.no_grad()
    def predict(
        self, model: nn.Module, batch: Batch, tokenizer: Any, *, examples: Sequence[Example] | None = None
    ) -> list[Any]:
        """Run one forward pass and return the predictions that `decode` gives for its logits."""
        return self.decode(model(**without_labels(batch)).logits, batch, examples)

    def check_model(self, model: Any) -> None:
        """Raise ValueError unless the model has the stack that the head reads."""
        choose_stack(model, self.stack(model))

    def apply_head(self, tensors: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        return Head.apply(tensors, hidden)

    def compute(
        self,
        model: nn.Module,
        head: HeadFunction | None,
        inputs: Mapping[str, Any],
        labels: torch.Tensor | None = None,
        *,
        call: Call | None = None,
        items: Items = None,
    ) -> Any:
        """Apply `read` to the backbone's features."""
        return self.read(model, self._checked(head), self.features_of(model, inputs, call), labels, items)

    def features_of(self, model: Any, inputs: Mapping[str, Any], call: Call | None = None) -> Features:
        """Return the features that the head reads."""
        return features(model, inputs, self.stack(model), call)

    def _checked(self, head: HeadFunction | None) -> HeadFunction:
        if head is None:
            raise ValueError(f"a task of kind {self.kind} cannot be computed without its head")
        return head
