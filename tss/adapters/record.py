"""What the handle knows of one task."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import nn

from tss.adapters.storage import digest
from tss.tasks.base import TaskKind


class State(StrEnum):
    """new -> learning -> sealed; a sealed task never changes again."""

    NEW = "new"
    LEARNING = "learning"
    SEALED = "sealed"


@dataclass
class TaskRecord:
    """One task: its kind, where it is in its life, its head, and once sealed its gates.

    Attributes:
        name, kind, state: what it is called, what it is, and where it is in its life.
        head: its own float32 head, or None where the language-model head answers.
        gates: layer -> uint8 packed gates, once sealed.
    """

    name: str
    kind: TaskKind
    head: nn.Module | None
    state: State = State.NEW
    gates: dict[str, torch.Tensor] = field(default_factory=dict)

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """The head's parameters by name; empty without a head."""
        return {} if self.head is None else dict(self.head.named_parameters())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Gates and head under the names they have on disk."""
        gates = {f"gates.{name}": packed for name, packed in self.gates.items()}
        return gates | {f"head.{name}": p.detach() for name, p in self.head_parameters().items()}

    def fingerprint(self) -> str:
        """sha256 over gates and head."""
        return digest(self.tensors())

    def sizes(self) -> dict[str, int]:
        """Bytes of "gates" and "head", and their "total"."""
        gates = sum(packed.numel() for packed in self.gates.values())
        head = sum(p.numel() * p.element_size() for p in self.head_parameters().values())
        return {"gates": gates, "head": head, "total": gates + head}
