"""Tasks of a model: their states, new -> learning -> sealed, and the values of the sealed ones.

Independent of the model: a sealed task is a value, packed gates and a head as plain tensors, which no optimizer,
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
    """State of a task: new -> learning -> sealed; a sealed task never changes again."""

    NEW = "new"
    LEARNING = "learning"
    SEALED = "sealed"


@dataclass(frozen=True)
class TaskRecord:
    """Public summary of one task, as of the last change of its state.

    Attributes:
        name, kind, state: name, kind and state of the task.
        bytes: bytes kept for it once sealed: gates or its own weights, and head.
        density: fraction of its gates that are on; None until sealed, or without gates.
        hash: SHA-256 of its gates or its own weights, and head; None until sealed.
    """

    name: str
    kind: TaskKind
    state: State
    bytes: int
    density: float | None = None
    hash: str | None = None


class KeptTask:
    """Sealed task that is not in memory: `read` returns its value, always the same, from where it is stored."""

    def __init__(self, read: Callable[[], SealedTask]) -> None:
        self.read = read


class TaskStore:
    """Records of all tasks and values of the sealed ones.

    Attributes:
        learners: the tasks being trained: none, one, or those trained together.
        cache: values that are read on first use, within its byte limit.
    """

    def __init__(self) -> None:
        self.learners: tuple[str, ...] = ()
        self.cache: TaskCache[KeptTask] = TaskCache()
        self._records: dict[str, TaskRecord] = {}
        self._sealed: dict[str, SealedTask | KeptTask] = {}

    @property
    def learning(self) -> str | None:
        """The task being trained (the first one, if several are trained together), or None."""
        return self.learners[0] if self.learners else None

    @property
    def tasks(self) -> Mapping[str, TaskRecord]:
        """Name -> record, in the order in which the tasks were added."""
        return MappingProxyType(self._records)

    def record(self, name: str) -> TaskRecord:
        """Return the record of a task.

        Raises:
            StateError: there is no task of that name; the message lists the existing ones.
        """
        if name not in self._records:
            known = ", ".join(self._records) or "none yet, add one with add_task(name, kind)"
            raise StateError(f"there is no task {name!r}; the tasks are: {known}")
        return self._records[name]

    def check_free(self, name: str) -> None:
        """Raise StateError if the name is taken, ValueError if it is invalid."""
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"a task's name must be one non-empty line of printable text, not {name!r}")
        if name in self._records:
            raise StateError(f"task {name!r} exists already and is {self._records[name].state}; choose another name")

    def add(self, name: str, kind: TaskKind, size: int) -> None:
        """Add a new task, for which `size` bytes will be kept."""
        self.check_free(name)
        self._records[name] = TaskRecord(name, kind, State.NEW, size)

    def start(self, *names: str) -> None:
        """Change the state of one task, or several together: new -> learning.

        Raises:
            StateError: there is no such task, it is sealed, or other tasks are being trained.
        """
        for name in names:
            if self.record(name).state is State.SEALED:
                raise StateError(f"task {name!r} is sealed and can never change; add a task with another name to train")
        if self.learners not in ((), names):
            raise StateError(
                f"task {', '.join(map(repr, self.learners))} is being trained; seal it, or leave it with abandon(), "
                f"before training {', '.join(map(repr, names))}"
            )
        self.learners = names
        self._records |= {name: replace(self._records[name], state=State.LEARNING) for name in names}

    def abandon(self) -> tuple[str, ...]:
        """Change the state of all tasks being trained: learning -> new; return their names.

        Raises:
            StateError: no task is being trained.
        """
        if not self.learners:
            raise StateError("no task is being trained, so there is nothing to abandon")
        names, self.learners = self.learners, ()
        self._records |= {name: replace(self._records[name], state=State.NEW) for name in names}
        return names

    def seal(self, name: str, value: SealedTask, density: float | None) -> None:
        """Change the state of a task to sealed, and keep its value and the fingerprint."""
        record, sha = self.record(name), digest(value.tensors())
        self._sealed[name] = value
        self._records[name] = replace(record, state=State.SEALED, bytes=value.bytes, density=density, hash=sha)
        self.learners = tuple(other for other in self.learners if other != name)

    def add_kept(self, record: TaskRecord, read: Callable[[], SealedTask]) -> None:
        """Add a sealed task whose value is read on first use, and again after it was evicted from the cache."""
        self.check_free(record.name)
        self._sealed[record.name], self._records[record.name] = KeptTask(read), record

    def delete(self, name: str) -> None:
        """Delete a task.

        Raises:
            StateError: there is no such task, or it is being trained.
        """
        if self.record(name).state is State.LEARNING:
            raise StateError(f"task {name!r} is being trained; leave it with abandon() before deleting it")
        del self._records[name]
        self._sealed.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """Rename a task; its place in the order stays the same.

        Raises:
            StateError: there is no such task, it is being trained, or the new name is taken.
        """
        if self.record(old).state is State.LEARNING:
            raise StateError(f"task {old!r} is being trained; seal or abandon it before renaming it")
        self.check_free(new)
        self._records = {
            new if name == old else name: replace(record, name=new) if name == old else record
            for name, record in self._records.items()
        }
        if old in self._sealed:
            self._sealed[new] = self._sealed.pop(old)

    def sealed(self, name: str) -> SealedTask:
        """Return the value of a sealed task.

        Raises:
            StateError: there is no such task, or it is not sealed.
        """
        if self.record(name).state is not State.SEALED:
            raise StateError(f"task {name!r} is {self.record(name).state}: only sealed tasks have a fingerprint")
        value = self._sealed[name]
        return value if isinstance(value, SealedTask) else self.cache.get(value, value.read)

    def verify(self, name: str, *, fresh: bool = True) -> None:
        """Raise ForgettingError if a sealed task's tensors are not what they were when it was sealed.

        Args:
            name: the task.
            fresh: check it even if its value is not in memory: it is read from where it is stored, and StateError is
                raised if that fails.
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
        """Move the tensors of all sealed tasks with `place`, which must not change values."""
        self.cache.clear()  # values that are read again go to the adapters' device
        for name, value in self._sealed.items():
            if isinstance(value, SealedTask):
                self._sealed[name] = value.placed(place)
