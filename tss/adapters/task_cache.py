"""Cache of task values, which are read on first use; evicts the least recently used above a byte limit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

from tss.adapters.sealed_task import SealedTask

Key = TypeVar("Key", bound=Hashable)


class TaskCache(Generic[Key]):
    """Cache of values by key, of at most `limit` bytes in total; a single larger value stays until the next is read.

    Safe for concurrent threads: a value that several ask for is read once, and no two values are read at the same time.

    Attributes:
        limit: limit in bytes; None to never evict.
        bytes: size of all cached values.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.bytes = limit, 0
        self._values: OrderedDict[Key, SealedTask] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, read: Callable[[], SealedTask]) -> SealedTask:
        """Return the value of a key, calling `read` if it is not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            with torch.inference_mode(False):  # the caller's mode would make tensors that no later training can use
                value = self._values[key] = read()
            self.bytes += value.bytes
            while self.limit is not None and self.bytes > self.limit and len(self._values) > 1:
                self.bytes -= self._values.popitem(last=False)[1].bytes
            return value

    def peek(self, key: Key) -> SealedTask | None:
        """Return the value of a key if it is cached; this does not count as a use of it."""
        return self._values.get(key)

    def clear(self) -> None:
        """Evict all values."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # a copy starts empty and reads for itself
