"""Choice of the task of a call: the one it names, else the one chosen on this thread, else the one being trained."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch

from tss.adapters.learning import TasksLearned
from tss.adapters.sealed_task import SealedTask
from tss.adapters.task_call import NO_TASK, TaskCall
from tss.adapters.task_store import State, TaskStore
from tss.errors import StateError
from tss.tasks.base import TaskKind

Chosen = str | tuple[str, ...] | None


class _Active:
    def __repr__(self) -> str:
        return "the active task"


ACTIVE = _Active()
"""Stands for the task in a call that names none: the active task."""
Task = str | Sequence[str] | TaskCall | _Active | None


class _OfThread(threading.local):
    made = False
    task: Chosen = None


class TaskChoice:
    """Active task of each thread, and resolution of task names.

    A choice stays until another is made: if its task was deleted or abandoned since, calls raise StateError and do not
    run the backbone without adapters. A thread that never chose runs the task being trained (the first of several).

    Args:
        store: the tasks.
        learning: holds the heads being trained.
    """

    def __init__(self, store: TaskStore, learning: TasksLearned) -> None:
        self.store, self.learning = store, learning
        self._here = _OfThread()

    def __getstate__(self) -> dict[str, Any]:
        here = (self._here.made, self._here.task)
        return {"store": self.store, "learning": self.learning, "here": here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.store, self.learning, self._here = state["store"], state["learning"], _OfThread()
        self._here.made, self._here.task = state["here"]  # a copy has the choice of its original on this thread

    @property
    def chosen(self) -> Chosen:
        """What a call without `task` would run, whether or not it can: a name, one name per row, or None."""
        return self._here.task if self._here.made else self.store.learning

    @property
    def active(self) -> str | None:
        """The task that a call without `task` runs; None if there is none, or if each row has its own task."""
        chosen = self.chosen
        runs = isinstance(chosen, str) and chosen in self.store.tasks
        return chosen if runs and self.store.tasks[chosen].state is not State.NEW else None  # type: ignore[index]

    def kind(self) -> TaskKind | None:
        """Return the active task's kind, for a model's labels and name; raise StateError if the task was deleted."""
        return self.store.record(self.chosen).kind if isinstance(self.chosen, str) else None

    def use(self, task: str | Sequence[str] | None) -> None:
        """Set the active task of this thread, or one task per row; None bypasses the adapters."""
        self._here.task, self._here.made = self._checked(task), True

    @contextmanager
    def using(self, task: str | Sequence[str] | None) -> Iterator[None]:
        """Set the active task within a `with` block, as `use` does; restores the earlier choice."""
        before, inside = (self._here.made, self._here.task), self._checked(task)
        self._here.task, self._here.made = inside, True
        try:
            yield
        finally:
            self._here.made, self._here.task = before

    def rename(self, old: str, new: str) -> None:
        """Replace the name of a renamed task in this thread's choice."""
        here = self._here
        if isinstance(here.task, tuple):
            here.task = tuple(new if name == old else name for name in here.task)
        elif here.task == old:
            here.task = new

    def resolve(self, task: Task) -> TaskCall:
        """Resolve the argument `task` of a call.

        Raises:
            StateError: there is no such task, it was never trained, or no task is given and none is active.
            ValueError: no names.
        """
        if isinstance(task, TaskCall):
            return task
        if task is not ACTIVE:
            return self._call_of(self._checked(task))  # type: ignore[arg-type]
        if not self._here.made and self.store.learning is None and self._sealed():
            raise StateError(
                f"the call names no task, and none is active on this thread: give task=..., or choose one with "
                f"model.tss.use(name), or use(None) for the model without adapters; the tasks are: {self._sealed()}"
            )
        try:
            chosen = self._checked(self.chosen)
        except StateError as error:
            raise StateError(
                f"{error}. The call names no task, and this one was active on this thread: choose another with "
                "model.tss.use(name), or use(None) for the model without adapters"
            ) from None
        return self._call_of(chosen)

    def _sealed(self) -> str:
        return ", ".join(name for name, record in self.store.tasks.items() if record.state is State.SEALED)

    def _call_of(self, chosen: Chosen) -> TaskCall:
        if chosen is None:
            return NO_TASK
        if isinstance(chosen, str):
            return self._call_of_one(chosen, self._value(chosen))
        places: dict[str, list[int]] = {}
        for row, name in enumerate(chosen):
            places.setdefault(name, []).append(row)
        values = {name: self._value(name) for name in places}  # once each: a value not in memory is read
        rows = [(self._call_of_one(name, values[name]), where) for name, where in places.items()]
        first = rows[0][0]
        call = TaskCall(self.store, chosen, first.kind, None, first.head, rows)
        sealed = [value for value in values.values() if value is not None]
        if len(sealed) == len(values):
            self._add_banks(call, sealed, list(places.values()))
        return call

    def _value(self, name: str) -> SealedTask | None:
        """Return the value of a sealed task; None for one that is being trained."""
        return None if self.store.record(name).state is State.LEARNING else self.store.sealed(name)

    def _add_banks(self, call: TaskCall, values: Sequence[SealedTask], places: Sequence[list[int]]) -> None:
        """Add the joint gates of all tasks of a call to it, if the tasks have gates."""
        first, *others = values
        if first.block is None:
            return
        call.banks = first.banks(others, len(call.names))
        ids = torch.empty(len(call.names), dtype=torch.int64)
        for index, rows in enumerate(places):
            ids[rows] = index
        call.bank_ids = ids.to(first.block.device)

    def _call_of_one(self, name: str, value: SealedTask | None) -> TaskCall:
        kind = self.store.record(name).kind
        if value is None:
            return TaskCall(self.store, (name,), kind, None, self.learning.of(name).head)
        return TaskCall(self.store, (name,), kind, value.by_site, value.head)

    def _checked(self, task: str | Sequence[str] | None) -> Chosen:
        if task is None:
            return None
        if isinstance(task, str):
            return self._runnable(task)
        if not isinstance(task, Sized) or not len(task):
            raise ValueError(f"expected the name of a task, or one name per row, got {task!r}")
        return tuple(self._runnable(name) for name in task)

    def _runnable(self, name: str) -> str:
        if self.store.record(name).state is State.NEW:
            raise StateError(f"task {name!r} is new and has no gates yet; call train_task({name!r}) first")
        return name
