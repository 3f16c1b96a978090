"""What one call of a model runs, and which call that is on this thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tss.tasks.base import TaskKind

SiteGates = Sequence[tuple[torch.Tensor, ...]]


class TaskCall:
    """One call's task, resolved from its name: of the same structure for every task, so that a trace serves them all.

    Attributes:
        owner: the store of the model that was called; other models' adapters have nothing to do with this call.
        names: the task, or the task of each row.
        kind: of the task, or of the first row's.
        gates: packed gates (down, up), or the task's own weights, by site; None: the live tensors of the adapters run.
        head: the head being learned, a module; or a sealed head's tensors; or None.
        active: whether there is a task.
        rows: None, or for tasks by row: the call of each task and its rows.
        count: of rows, for tasks by row; else None.
        labelled_rows: whether any of those tasks answers with a head.
        banks: for tasks by row that are all sealed and have gates: (down, up) gates of all of them, by site.
        bank_ids: int64, each row's task among those of the banks.
        copies: how often a row may be repeated, each beside its copies: beams.
    """

    def __init__(
        self,
        owner: Any,
        names: tuple[str, ...],
        kind: TaskKind | None,
        gates: SiteGates | None,
        head: torch.nn.Module | Mapping[str, torch.Tensor] | None,
        rows: list[tuple[TaskCall, list[int]]] | None = None,
    ) -> None:
        self.owner, self.names, self.kind, self.gates, self.head, self.rows = owner, names, kind, gates, head, rows
        self.active = owner is not None
        # Apart from the lists, to whose lengths a compiled call would be bound.
        self.count = None if rows is None else len(names)
        self.labelled_rows = rows is not None and any(of_task.labelled for of_task, _ in rows)
        self.banks: SiteGates | None = None
        self.bank_ids: torch.Tensor | None = None
        self.copies: tuple[int, ...] = (1,)

    @property
    def labelled(self) -> bool:
        """Whether the answer is a head's."""
        return self.head is not None

    def head_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., H) -> logits of the task's own head."""
        if isinstance(self.head, torch.nn.Module):
            return self.head(hidden)
        assert self.head is not None
        assert self.kind is not None
        return self.kind.apply_head(self.head, hidden)

    def most_rows(self, count: int) -> int:
        """How many rows a batch of `count` positions has, of which each row has as many as another.

        Raises:
            ValueError: they do not divide.
        """
        assert self.count is not None
        rows = self.count * max(self.copies)
        if count % rows:
            raise ValueError(f"{count} positions do not divide into {rows} rows: give one task name per row")
        return rows

    def ids(self, count: int, device: torch.device) -> torch.Tensor:
        """Of each of `count` rows, its task among those of the banks, int64 (count,).

        Raises:
            ValueError: there is not one name for each row.
        """
        assert self.bank_ids is not None
        copies = self._copies(count)
        ids = self.bank_ids.to(device)
        return ids if copies == 1 else ids.repeat_interleave(copies)

    def _copies(self, count: int) -> int:
        assert self.count is not None
        copies, odd = divmod(count, self.count)
        if odd or copies not in self.copies:
            raise ValueError(
                f"a batch of {count} rows for {self.count} task names: give one name per row "
                "(only generate repeats rows, for its beams)"
            )
        return copies

    def groups(self, count: int, device: torch.device) -> tuple[list[tuple[TaskCall, torch.Tensor]], torch.Tensor]:
        """For `count` rows: [(call of a task, its rows)], and where each row is after joining these groups.

        Raises:
            ValueError: there is not one name for each row.
        """
        assert self.rows is not None
        copies = self._copies(count)
        groups = [
            (call, torch.tensor([row * copies + i for row in rows for i in range(copies)], device=device))
            for call, rows in self.rows
        ]
        return groups, torch.cat([rows for _, rows in groups]).argsort()


NO_TASK = TaskCall(None, (), None, None, None)
"""A call without a task: adapters are bypassed, also where its layers run again."""


class _OfThread(threading.local):
    # An attribute of the class, not one set in __init__: a compiled function guards on it in new threads too.
    # Not a ContextVar, which torch.compile cannot trace.
    current: TaskCall | None = None


_of_thread = _OfThread()


def current_call() -> TaskCall | None:
    """The innermost call on this thread."""
    return _of_thread.current


@contextmanager
def calling(call: TaskCall | None) -> Iterator[None]:
    """Inside, adapters run for this call, on this thread alone; None: no task, they are bypassed."""
    before = _of_thread.current
    _of_thread.current = call
    try:
        yield
    finally:
        _of_thread.current = before
