"""Events of a run: one JSON object per line, truncated on resume so that nothing is recorded twice."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tss.errors import StateError
from tss.io import sync_directory, to_json

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Written:
    """Events up to some point: number of bytes of the file, and their SHA-256."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class EventLog:
    """Log that appends events to a file and passes each to a listener.

    Args:
        path: the file, created if missing.
        written: the part of the file to keep; the rest comes from work that is about to be repeated.
        step_seconds: minimum seconds between two written `step` events; 0 writes every one.
        listener: called with every event, including `step` events that are not written.

    Raises:
        StateError: the file does not begin with the part to keep.
    """

    def __init__(
        self,
        path: Path,
        *,
        written: Written | None = None,
        step_seconds: float = 1.0,
        listener: Listener | None = None,
    ) -> None:
        self.path, self._step_seconds, self._listener = path, step_seconds, listener
        self._last_step = 0.0
        self._sha = check_events(path, written or Written())
        new = not path.exists()
        self._file = path.open("ab")
        if new:
            sync_directory(path.parent)
        self._file.truncate((written or Written()).bytes)
        self._file.seek(0, os.SEEK_END)

    def emit(self, event: str, **fields: Any) -> None:
        """Write an event with the time (Unix seconds) and pass it to the listener; a `step` too soon is not written."""
        record = self.tell(event, **fields)
        if event != "step" or self._step_is_due(record["time"]):
            line = to_json(record).encode() + b"\n"
            self._file.write(line)
            self._file.flush()
            self._sha.update(line)

    def tell(self, event: str, **fields: Any) -> dict[str, Any]:
        """Pass an event to the listener without writing it, and return the whole event."""
        record = {"event": event, "time": round(time.time(), 3), **fields}
        if self._listener is not None:
            self._listener(record)
        return record

    def _step_is_due(self, now: float) -> bool:
        if self._step_seconds and now - self._last_step < self._step_seconds:
            return False
        self._last_step = now
        return True

    def written(self) -> Written:
        """Return what was written so far, which is on the disk when this returns."""
        os.fsync(self._file.fileno())
        return Written(os.fstat(self._file.fileno()).st_size, self._sha.hexdigest())

    def close(self) -> None:
        self._file.close()


def check_events(path: Path, written: Written) -> Any:
    """Return the running SHA-256 of the part of an event file that is kept.

    Raises:
        StateError: the file is shorter than this part, or this part was changed.
    """
    data = b""
    if path.exists():
        with path.open("rb") as file:
            data = file.read(written.bytes)
    if len(data) < written.bytes:
        raise StateError(
            f"{path}: {len(data)} bytes found, at least {written.bytes} expected by the saved state; the file was "
            "truncated: restore the whole file, or start in another folder"
        )
    sha = hashlib.sha256(data)
    if sha.hexdigest() != written.sha256:
        raise StateError(
            f"{path}: its first {written.bytes} bytes have SHA-256 {sha.hexdigest()}, expected {written.sha256}; it "
            "was edited: restore the file from a copy, or start in another folder"
        )
    return sha
