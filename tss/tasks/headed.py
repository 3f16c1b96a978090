"""Kinds of tasks that answer with a head of their own on the backbone's hidden states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tss.tasks.base import Batch, Example, HeadFunction, Items, TaskKind, without_labels
from tss.tasks.heads import Call, Features, Head, choose_stack, features


class HeadedKind(TaskKind):
    """A kind whose answer is `read` off the last hidden states of one `stack` of the backbone.

    The two steps are apart so that rows of different tasks can share the backbone's one pass.
    """

    @abstractmethod
    def stack(self, model: Any) -> str:
        """The stack that the head reads: "encoder", "decoder", or "auto", which is the decoder if there is one."""

    @abstractmethod
    def read(
        self,
        model: Any,
        head: HeadFunction,
        features: Features,
        labels: torch.Tensor | None = None,
        items: Items = None,
    ) -> Any:
        """A transformers output with `logits`, and `loss` if labels are given.

        Args:
            model: tells the architecture.
            head: hidden states (..., H) -> logits (..., outputs).
            features: of the backbone.
            labels: as the kind collates them.
            items: labels over which the loss is averaged, where they are more than this batch's; None: this batch's.
        """

    @abstractmethod
    def decode(self, logits: torch.Tensor, batch: Batch, examples: Sequence[Example] | None = None) -> list[Any]:
        """The predictions that logits stand for, one per row.

        Args:
            logits: as `read` gives them for the batch.
            batch: from `collate`.
            examples: as for `predict`.
        """

    @abstractmethod
    def confidence(
        self, logits: torch.Tensor, batch: Batch, examples: Sequence[Example] | None = None
    ) -> list[dict[str, Any]]:
        """How sure the logits are of what `decode` reads off them, one per row; softmax, not calibrated.

        Args:
            logits, batch, examples: as for `decode`.

        Returns:
            "confidence", the probability of the prediction, one for each part of it where it has parts, None for a part
            that was not read; and "scores", label -> probability, where a row has one distribution.
        """

    @torch.no_grad()
    def predict(
        self, model: nn.Module, batch: Batch, tokenizer: Any, *, examples: Sequence[Example] | None = None
    ) -> list[Any]:
        """What `decode` reads off the logits of one pass."""
        return self.decode(model(**without_labels(batch)).logits, batch, examples)

    def check_model(self, model: Any) -> None:
        """The stack that the head reads must be there."""
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
        """`read` of the backbone's features."""
        return self.read(model, self._checked(head), self.features_of(model, inputs, call), labels, items)

    def features_of(self, model: Any, inputs: Mapping[str, Any], call: Call | None = None) -> Features:
        """What the head reads."""
        return features(model, inputs, self.stack(model), call)

    def _checked(self, head: HeadFunction | None) -> HeadFunction:
        if head is None:
            raise ValueError(f"a task of kind {self.kind} cannot be computed without its head")
        return head
