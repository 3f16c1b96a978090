"""What the handle tells of one task."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tss.tasks.base import TaskKind


class State(StrEnum):
    """new -> learning -> sealed; a sealed task never changes again."""

    NEW = "new"
    LEARNING = "learning"
    SEALED = "sealed"


@dataclass(frozen=True)
class TaskRecord:
    """One task as it was when its state last changed.

    Attributes:
        name, kind, state: what it is called, what it is, and where it is in its life.
        bytes: what is kept for it once sealed: gates and head.
        density: share of its gates that are on; None until sealed, or without gates.
        hash: sha256 over its gates and head; None until sealed.
    """

    name: str
    kind: TaskKind
    state: State
    bytes: int
    density: float | None = None
    hash: str | None = None
