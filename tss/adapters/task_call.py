"""What one call of a model runs, and the current call on this thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tss.tasks.base import TaskKind

SiteGates = Sequence[tuple[torch.Tensor, ...]]


class TaskCall:
    """Task of one call, resolved from its name; has the same structure for every task, so that a trace serves them all.

    Attributes:
        owner: the store of the model that was called; adapters of other models ignore this call.
        names: the task, or the task of each row.
        kind: kind of the task, or of the first row's task.
        gates: packed gates (down, up), or the task's own weights, by site; None if the adapters' live tensors run.
        head: the module of a head being trained, the tensors of a sealed head, or None.
        active: whether there is a task.
        rows: with one task per row, the call of each task and its rows; else None.
        count: number of rows, with one task per row; else None.
        labelled_rows: whether any of those tasks has a head.
        banks: with one task per row, if all are sealed and have gates: (down, up) gates of all tasks, by site.
        bank_ids: int64, index in the banks of each row's task.
        copies: how often each row may be repeated, with its copies beside it, for beams.
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
        # Separate from the lists, because a compiled call would be specialized to their lengths.
        self.count = None if rows is None else len(names)
        self.labelled_rows = rows is not None and any(of_task.labelled for of_task, _ in rows)
        self.banks: SiteGates | None = None
        self.bank_ids: torch.Tensor | None = None
        self.copies: tuple[int, ...] = (1,)

    @property
    def labelled(self) -> bool:
        """Whether the output comes from a head."""
        return self.head is not None

    def head_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of the task's own head for hidden (..., H)."""
        if isinstance(self.head, torch.nn.Module):
            return self.head(hidden)
        assert self.head is not None
        assert self.kind is not None
        return self.kind.apply_head(self.head, hidden)

    def most_rows(self, count: int) -> int:
        """Return the largest number of rows that a batch of `count` positions can have, all rows being equally long.

        Raises:
            ValueError: `count` is not divisible by that number.
        """
        assert self.count is not None
        rows = self.count * max(self.copies)
        if count % rows:
            raise ValueError(f"{count} positions do not divide into {rows} rows: give one task name per row")
        return rows

    def ids(self, count: int, device: torch.device) -> torch.Tensor:
        """Return the index in the banks of the task of each of `count` rows, int64 (count,).

        Raises:
            ValueError: there is not one name per row.
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
        """Return [(call of a task, its rows)] for `count` rows, and where each row is after joining these groups.

        Raises:
            ValueError: there is not one name per row.
        """
        assert self.rows is not None
        copies = self._copies(count)
        groups = [
            (call, torch.tensor([row * copies + i for row in rows for i in range(copies)], device=device))
            for call, rows in self.rows
        ]
        return groups, torch.cat([rows for _, rows in groups]).argsort()


NO_TASK = TaskCall(None, (), None, None, None)
"""Call without a task: adapters are bypassed, also when checkpointed layers run again in its backward pass."""


class _OfThread(threading.local):
    # A class attribute, not one set in __init__, so that a compiled function can guard on it in new threads too.
    # Not a ContextVar, which torch.compile cannot trace.
    current: TaskCall | None = None


_of_thread = _OfThread()


def current_call() -> TaskCall | None:
    """Return the innermost call on this thread."""
    return _of_thread.current


@contextmanager
def calling(call: TaskCall | None) -> Iterator[None]:
    """Run adapters for this call within a `with` block, on this thread only; None (no task) bypasses them."""
    before = _of_thread.current
    _of_thread.current = call
    try:
        yield
    finally:
        _of_thread.current = before
