"""Values of tasks that are read when they are first asked for; the least recently used leave when they are too many."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from tss.adapters.sealed_task import SealedTask

Key = TypeVar("Key", bound=Hashable)


class TaskCache(Generic[Key]):
    """Values by key, of at most `limit` bytes in all; a single one that is larger stays until the next is read.

    Threads may ask at the same time: a value is then read once, and no two are read together.

    Attributes:
        limit: bytes; None: no value ever leaves.
        bytes: of all values that are held.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.bytes = limit, 0
        self._values: OrderedDict[Key, SealedTask] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, read: Callable[[], SealedTask]) -> SealedTask:
        """The value of a key, by `read` if it is not held."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            value = self._values[key] = read()
            self.bytes += value.bytes
            while self.limit is not None and self.bytes > self.limit and len(self._values) > 1:
                self.bytes -= self._values.popitem(last=False)[1].bytes
            return value

    def peek(self, key: Key) -> SealedTask | None:
        """The value of a key if it is held; this is no use of it."""
        return self._values.get(key)

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # a copy reads for itself
