"""The tasks of a model: their life, new -> learning -> sealed, and the values of those that are sealed.

Nothing here knows a model: a sealed task is a value, packed gates and a head as plain tensors, which no optimizer,
`load_state_dict`, cast or broadcast can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

import torch

from tss.adapters.storage import Tensors, digest
from tss.errors import ForgettingError, StateError
from tss.tasks.base import TaskKind


class State(StrEnum):
    """new -> learning -> sealed; a sealed task never changes again."""

    NEW = "new"
    LEARNING = "learning"
    SEALED = "sealed"


@dataclass(frozen=True)
class TaskRecord:
    """What is told of one task, as it was when its state last changed.

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


@dataclass(frozen=True)
class SealedTask:
    """The value of a sealed task.

    Attributes:
        gates: packed gates, uint8 (out, ceil(in / 8)), by layer, down before up for each site; empty without gates.
        head: the head's tensors by the names of its `state_dict`; None without a head of its own.
        weights: the task's own weights by name, as many for each site as for another; empty where it has none.
        sites: how many there are.
    """

    gates: Tensors
    head: Tensors | None
    weights: Tensors = field(default_factory=dict)
    sites: int = 1

    def tensors(self) -> Tensors:
        """All that its answers depend on, besides what is frozen: "gates.<layer>" and "head.<parameter>"."""
        parts = {"gates": self.gates, "weights": self.weights, "head": self.head or {}}
        return {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}

    def by_site(self) -> list[tuple[torch.Tensor, ...]] | None:
        """What each site runs for the task, (down, up) gates or its own weights; None where it runs shared weights."""
        kept = list((self.gates or self.weights).values())
        size = len(kept) // self.sites
        return [tuple(kept[start : start + size]) for start in range(0, len(kept), size)] if kept else None


class TaskStore:
    """Records of all tasks and values of the sealed ones.

    Attributes:
        learners: the tasks that are being learned: none, one, or those that are learned together.
    """

    def __init__(self) -> None:
        self.learners: tuple[str, ...] = ()
        self._records: dict[str, TaskRecord] = {}
        self._sealed: dict[str, SealedTask] = {}
        self._site_gates: dict[str, list[tuple[torch.Tensor, ...]] | None] = {}

    @property
    def learning(self) -> str | None:
        """The task that is being learned, the first of several, or None."""
        return self.learners[0] if self.learners else None

    @property
    def tasks(self) -> Mapping[str, TaskRecord]:
        """Name -> record, in the order in which the tasks were added."""
        return MappingProxyType(self._records)

    def record(self, name: str) -> TaskRecord:
        """The record of a task.

        Raises:
            StateError: there is none of that name; the message lists those that there are.
        """
        if name not in self._records:
            known = ", ".join(self._records) or "none yet, add one with add_task(name, kind)"
            raise StateError(f"there is no task {name!r}; the tasks are: {known}")
        return self._records[name]

    def check_free(self, name: str) -> None:
        """Raise StateError if there is a task of this name, ValueError if it is no name."""
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"a task's name must be a line of text, not {name!r}")
        if name in self._records:
            raise StateError(f"task {name!r} exists already and is {self._records[name].state}; choose another name")

    def add(self, name: str, kind: TaskKind, size: int) -> None:
        """A new task, for which `size` bytes will be kept."""
        self.check_free(name)
        self._records[name] = TaskRecord(name, kind, State.NEW, size)

    def start(self, *names: str) -> None:
        """new -> learning, for one task or for several together.

        Raises:
            StateError: no such task, a sealed one, or others are being learned.
        """
        for name in names:
            if self.record(name).state is State.SEALED:
                raise StateError(
                    f"task {name!r} is sealed and can never change; add a task of another name to learn on"
                )
        if self.learners not in ((), names):
            raise StateError(
                f"task {', '.join(map(repr, self.learners))} is being learned; seal it, or leave it with abandon(), "
                f"before training {', '.join(map(repr, names))}"
            )
        self.learners = names
        self._records |= {name: replace(self._records[name], state=State.LEARNING) for name in names}

    def abandon(self) -> tuple[str, ...]:
        """learning -> new, for all that are being learned; gives their names.

        Raises:
            StateError: no task is being learned.
        """
        if not self.learners:
            raise StateError("no task is being learned, so there is nothing to abandon")
        names, self.learners = self.learners, ()
        self._records |= {name: replace(self._records[name], state=State.NEW) for name in names}
        return names

    def seal(self, name: str, value: SealedTask, density: float | None) -> None:
        """-> sealed: keep the value and its fingerprint."""
        record, tensors = self.record(name), value.tensors()
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self._sealed[name], self._site_gates[name] = value, value.by_site()
        self._records[name] = replace(record, state=State.SEALED, bytes=size, density=density, hash=digest(tensors))
        self.learners = tuple(other for other in self.learners if other != name)

    def delete(self, name: str) -> None:
        """Forget a task.

        Raises:
            StateError: no such task, or it is being learned.
        """
        if self.record(name).state is State.LEARNING:
            raise StateError(f"task {name!r} is being learned; leave it with abandon() before deleting it")
        for table in (self._records, self._sealed, self._site_gates):
            table.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """Another name for a task, at the same place in the order.

        Raises:
            StateError: no such task, it is being learned, or the new name is taken.
        """
        if self.record(old).state is State.LEARNING:
            raise StateError(f"task {old!r} is being learned; seal or abandon it before renaming it")
        self.check_free(new)
        self._records = {
            new if name == old else name: replace(record, name=new) if name == old else record
            for name, record in self._records.items()
        }
        for table in (self._sealed, self._site_gates):
            if old in table:
                table[new] = table.pop(old)  # type: ignore[assignment]

    def sealed(self, name: str) -> SealedTask:
        """The value of a sealed task.

        Raises:
            StateError: no such task, or it is not sealed.
        """
        if self.record(name).state is not State.SEALED:
            raise StateError(f"task {name!r} is {self.record(name).state}: only what is sealed has a fingerprint")
        return self._sealed[name]

    def site_gates(self, name: str) -> list[tuple[torch.Tensor, ...]] | None:
        """What `SealedTask.by_site` gives of a sealed task."""
        return self._site_gates[name]

    def verify(self, name: str) -> None:
        """Raise ForgettingError if a sealed task's tensors are not what they were when it was sealed."""
        found, expected = digest(self.sealed(name).tensors()), self._records[name].hash
        if found != expected:
            raise ForgettingError(
                f"gates or head of sealed task {name!r} changed: sha256 {found}, sealed as {expected}; something wrote "
                "to its tensors: load it again from where it was saved"
            )

    def move(self, place: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put the tensors of all sealed tasks elsewhere; `place` may not change a value."""
        for name, value in self._sealed.items():
            moved = replace(
                value,
                gates={key: place(tensor) for key, tensor in value.gates.items()},
                weights={key: place(tensor) for key, tensor in value.weights.items()},
                head=None if value.head is None else {key: place(tensor) for key, tensor in value.head.items()},
            )
            self._sealed[name], self._site_gates[name] = moved, moved.by_site()
