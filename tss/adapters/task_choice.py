"""Which task a call runs: the one that it names, else the one chosen on this thread, else the one being learned."""

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
"""What a call that names no task asks for."""
Task = str | Sequence[str] | TaskCall | _Active | None


class _OfThread(threading.local):
    made = False
    task: Chosen = None


class TaskChoice:
    """Each thread's own choice, and what names mean.

    A choice stays until another is made: one whose task was deleted or abandoned since runs nothing, least of all the
    bare backbone. A thread that never chose runs what is being learned, of
    several tasks the first.

    Args:
        store: the tasks.
        learning: holds the heads being learned.
    """

    def __init__(self, store: TaskStore, learning: TasksLearned) -> None:
        self.store, self.learning = store, learning
        self._here = _OfThread()

    def __getstate__(self) -> dict[str, Any]:
        here = (self._here.made, self._here.task)
        return {"store": self.store, "learning": self.learning, "here": here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.store, self.learning, self._here = state["store"], state["learning"], _OfThread()
        self._here.made, self._here.task = state["here"]  # a copy runs what its original runs on this thread

    @property
    def chosen(self) -> Chosen:
        """What a call that names no task would run, whether it can or not: a name, one per row, or None."""
        return self._here.task if self._here.made else self.store.learning

    @property
    def active(self) -> str | None:
        """The task that a call runs which names none; None without one, or where rows have tasks of their own."""
        chosen = self.chosen
        runs = isinstance(chosen, str) and chosen in self.store.tasks
        return chosen if runs and self.store.tasks[chosen].state is not State.NEW else None  # type: ignore[index]

    def kind(self) -> TaskKind | None:
        """Of the active task, by which a model's labels and name go; StateError if it was deleted."""
        return self.store.record(self.chosen).kind if isinstance(self.chosen, str) else None

    def use(self, task: str | Sequence[str] | None) -> None:
        """Choose a task for this thread, or one for each row; None: the model without adapters."""
        self._here.task, self._here.made = self._checked(task), True

    @contextmanager
    def using(self, task: str | Sequence[str] | None) -> Iterator[None]:
        """`use` for a while; what was chosen before is chosen again after."""
        before, inside = (self._here.made, self._here.task), self._checked(task)
        self._here.task, self._here.made = inside, True
        try:
            yield
        finally:
            self._here.made, self._here.task = before

    def rename(self, old: str, new: str) -> None:
        """This thread's choice goes with a task that gets another name."""
        here = self._here
        if isinstance(here.task, tuple):
            here.task = tuple(new if name == old else name for name in here.task)
        elif here.task == old:
            here.task = new

    def resolve(self, task: Task) -> TaskCall:
        """What `task=` means in a call.

        Raises:
            StateError: no such task, or one that was never trained; or none is named, and none is active.
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
        values = {name: self._value(name) for name in places}  # once each: one that is not in memory is read
        rows = [(self._call_of_one(name, values[name]), where) for name, where in places.items()]
        first = rows[0][0]
        call = TaskCall(self.store, chosen, first.kind, None, first.head, rows)
        sealed = [value for value in values.values() if value is not None]
        if len(sealed) == len(values):
            self._add_banks(call, sealed, list(places.values()))
        return call

    def _value(self, name: str) -> SealedTask | None:
        """What a task is sealed as; None of one that is being learned."""
        return None if self.store.record(name).state is State.LEARNING else self.store.sealed(name)

    def _add_banks(self, call: TaskCall, values: Sequence[SealedTask], places: Sequence[list[int]]) -> None:
        """Bring the gates of all tasks of a call together, if they have gates."""
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
