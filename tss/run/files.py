"""Small files that are either the old ones or the new ones after a crash, never half of each."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tss.errors import StateError


def write_text(path: Path, text: str) -> None:
    """Replace the file at once: a temporary file beside it, flushed to the disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text, the same for equal values: keys keep their order, not-a-number is refused."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of the text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def slug(name: str) -> str:
    """A task's name as a part of a file name: "asc/ding9_ipod" becomes "asc-ding9_ipod"."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "task"


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk (or a file-size limit or quota) into one clear error; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StateError(
            f"{folder}: {error.strerror} while writing {error.filename or 'the run'}; everything that was finished is "
            "kept: make room there, then continue with --resume"
        ) from error
