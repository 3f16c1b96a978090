"""The run's diary: one JSON object per line, cut back on resume so that nothing is told twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tss.errors import StateError
from tss.io import to_json

Listener = Callable[[dict[str, Any]], None]


class EventLog:
    """Appends events to a file and tells a listener of each.

    Args:
        path: the file, made if it is missing.
        length: bytes of it that count; what comes after them was written by work that is about to be done again.
        step_seconds: at least this long between two `step` events; 0 writes every one.
        listener: called with every event, those of throttled steps included.
    """

    def __init__(self, path: Path, *, length: int = 0, step_seconds: float = 1.0, listener: Listener | None = None):
        self.path, self._step_seconds, self._listener = path, step_seconds, listener
        self._last_step = 0.0
        self._file = path.open("ab")
        self.cut(length)

    def cut(self, length: int) -> None:
        """Keep the first `length` bytes.

        Raises:
            StateError: if the file is shorter than that.
        """
        found = os.fstat(self._file.fileno()).st_size
        if found < length:
            raise StateError(
                f"{self.path}: {found} bytes found, at least {length} expected by the saved state; the file was "
                "truncated: put back the whole file, or start in another folder"
            )
        self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event with the time (unix seconds) and tell the listener; a `step` too soon is only told."""
        record = self.tell(event, **fields)
        if event != "step" or self._step_is_due(record["time"]):
            self._file.write(to_json(record).encode() + b"\n")
            self._file.flush()

    def tell(self, event: str, **fields: Any) -> dict[str, Any]:
        """Tell the listener of an event without writing it; gives the whole event."""
        record = {"event": event, "time": round(time.time(), 3), **fields}
        if self._listener is not None:
            self._listener(record)
        return record

    def _step_is_due(self, now: float) -> bool:
        if self._step_seconds and now - self._last_step < self._step_seconds:
            return False
        self._last_step = now
        return True

    def position(self) -> int:
        """Bytes written so far, on the disk when this returns."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()
