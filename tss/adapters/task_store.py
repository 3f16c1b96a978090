"""The tasks of a model: their life, new -> learning -> sealed, and the values of those that are sealed.

Nothing here knows a model: a sealed task is a value, packed gates and a head as plain tensors, which no optimizer,
`load_state_dict`, cast or broadcast can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

import torch

from tss.adapters.sealed_task import SealedTask
from tss.adapters.storage import digest
from tss.adapters.task_cache import TaskCache
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


class KeptTask:
    """A sealed task that is not in memory: `read` gives its value, always the same, from where it is kept."""

    def __init__(self, read: Callable[[], SealedTask]) -> None:
        self.read = read


class TaskStore:
    """Records of all tasks and values of the sealed ones.

    Attributes:
        learners: the tasks that are being learned: none, one, or those that are learned together.
        cache: values that are read when they are first asked for, within its limit of bytes.
    """

    def __init__(self) -> None:
        self.learners: tuple[str, ...] = ()
        self.cache: TaskCache[KeptTask] = TaskCache()
        self._records: dict[str, TaskRecord] = {}
        self._sealed: dict[str, SealedTask | KeptTask] = {}

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
        record, sha = self.record(name), digest(value.tensors())
        self._sealed[name] = value
        self._records[name] = replace(record, state=State.SEALED, bytes=value.bytes, density=density, hash=sha)
        self.learners = tuple(other for other in self.learners if other != name)

    def add_kept(self, record: TaskRecord, read: Callable[[], SealedTask]) -> None:
        """A sealed task whose value is read when it is first asked for, and again after it had to leave the cache."""
        self.check_free(record.name)
        self._sealed[record.name], self._records[record.name] = KeptTask(read), record

    def delete(self, name: str) -> None:
        """Forget a task.

        Raises:
            StateError: no such task, or it is being learned.
        """
        if self.record(name).state is State.LEARNING:
            raise StateError(f"task {name!r} is being learned; leave it with abandon() before deleting it")
        del self._records[name]
        self._sealed.pop(name, None)

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
        if old in self._sealed:
            self._sealed[new] = self._sealed.pop(old)

    def sealed(self, name: str) -> SealedTask:
        """The value of a sealed task.

        Raises:
            StateError: no such task, or it is not sealed.
        """
        if self.record(name).state is not State.SEALED:
            raise StateError(f"task {name!r} is {self.record(name).state}: only what is sealed has a fingerprint")
        value = self._sealed[name]
        return value if isinstance(value, SealedTask) else self.cache.get(value, value.read)

    def verify(self, name: str, *, fresh: bool = True) -> None:
        """Raise ForgettingError if a sealed task's tensors are not what they were when it was sealed.

        Args:
            name: the task.
            fresh: also if its value is not in memory: it is read from where it is kept, and StateError says if it
                cannot be.
        """
        value = self._sealed[self.record(name).name]
        if isinstance(value, KeptTask):
            value = self.cache.peek(value) or (value.read() if fresh else None)
        if value is None:
            return
        found, expected = digest(value.tensors()), self._records[name].hash
        if found != expected:
            raise ForgettingError(
                f"gates or head of sealed task {name!r} changed: sha256 {found}, sealed as {expected}; something wrote "
                "to its tensors: load it again from where it was saved"
            )

    def move(self, place: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put the tensors of all sealed tasks elsewhere; `place` may not change a value."""
        self.cache.clear()  # what is read again is read to where the adapters are
        for name, value in self._sealed.items():
            if isinstance(value, SealedTask):
                self._sealed[name] = value.placed(place)
