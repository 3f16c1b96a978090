"""Modules that train: their parameters stay float32 when the model around them is cast to something narrower."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Float32Module(nn.Module):
    """A module whose floating tensors follow the model's device but keep their dtype."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Float32Module:
        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


class TaskHeads(Float32Module):
    """The heads of all tasks that have one, float32.

    Setting a mode, training or evaluation, reaches the heads that were asked for since the last time; any other takes
    the mode over when it is asked for. So it costs the same however many tasks there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        self._asked: dict[str, nn.Module] = {}

    def put(self, task: str, head: nn.Module) -> None:
        """Keep a task's head."""
        # A task's name may hold a dot, which a module's name may not.
        self.names[task] = f"head{len(self.names)}"
        self.add_module(self.names[task], head)

    def of(self, task: str) -> nn.Module | None:
        """A task's head in this module's mode, or None where it uses the model's language-model head."""
        if task not in self.names:
            return None
        head: nn.Module = getattr(self, self.names[task])
        self._asked[task] = head
        return head if head.training == self.training else head.train(self.training)

    def train(self, mode: bool = True) -> TaskHeads:
        """Sets the mode of the heads in use and of those to come."""
        self.training = mode
        for head in self._asked.values():
            head.train(mode)
        self._asked.clear()
        return self
