"""Files that are whole or as they were, what identifies their content, and names that are safe in a path."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
NAME_LENGTH = 100
"""Characters of a name that are kept in a path; file systems allow 255 bytes, and names get a number and a digest."""


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file at once: written beside it, flushed to the disk, then renamed over it.

    The temporary file has a name of its own, so that several processes may write the same path: the last one wins. The
    new name is on the disk when this returns, so that files written one after the other survive in that order.

    Raises:
        OSError: for example a full disk; the old file is then still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name[:NAME_LENGTH]}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _flush(path.parent)


def _flush(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of the text as UTF-8."""
    write_bytes(path, text.encode())


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text, the same for equal values: keys keep their order, not-a-number is refused."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def sha256(content: bytes | str | Path) -> str:
    """Hexadecimal SHA-256 of bytes, of a text as UTF-8, or of a file."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def safe_name(name: str) -> str:
    """A task's name as a part of a file name: "asc/ding9_ipod" becomes "asc-ding9_ipod"; long ones are cut."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)[:NAME_LENGTH].strip("-.") or "task"
