"""Kinds of tasks that answer with a head of their own on the backbone's hidden states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tss.tasks.base import TaskKind
from tss.tasks.heads import choose_stack, features


class HeadedKind(TaskKind):
    """A kind whose answer is `read` off the last hidden states of one `stack` of the backbone.

    The two steps are apart so that rows of different tasks can share the backbone's one pass.
    """

    @abstractmethod
    def stack(self, model: Any) -> str:
        """The stack that the head reads: "encoder", "decoder", or "auto", which is the decoder if there is one."""

    @abstractmethod
    def read(
        self, model: Any, head: nn.Module, hidden: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> Any:
        """A transformers output with `logits`, and `loss` if labels are given; hidden (B, L, H), mask (B, L)."""

    def check_model(self, model: Any) -> None:
        """The stack that the head reads must be there."""
        choose_stack(model, self.stack(model))

    def compute(
        self,
        model: nn.Module,
        head: nn.Module | None,
        inputs: Mapping[str, torch.Tensor],
        labels: torch.Tensor | None = None,
    ) -> Any:
        """`read` of the backbone's features."""
        hidden, mask = self.hidden(model, head, inputs)
        assert head is not None
        return self.read(model, head, hidden, mask, labels)

    def hidden(
        self, model: nn.Module, head: nn.Module | None, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head reads: hidden (B, L, H), mask (B, L).

        Raises:
            ValueError: there is no head.
        """
        if head is None:
            raise ValueError(f"a task of kind {self.kind} cannot be computed without its head")
        return features(model, inputs, self.stack(model))
