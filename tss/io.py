"""Atomic file writes, locks, JSON, checksums, and names that are safe in a path."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tss.errors import StateError

PARTIAL = re.compile(r"(.+)\.[0-9a-f]{32}\.partial")
"""Name of a file that is still being written; the group is its final name."""
NAME_LENGTH = 100
"""Maximum characters of a name in a path; file systems allow 255 bytes, and a number and a digest are added."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: write and flush a temporary file, rename it over the old one, and flush the rename.

    The temporary file has a unique name, so that several processes may write the same path: the last one wins. The
    rename is on the disk when this returns, so that files written one after the other survive a power failure in that
    order.

    Raises:
        OSError: for example, the disk is full; the old file is then kept, unless only flushing the rename failed.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file whose content replaces `path`, as in `write_bytes`, if the block ends without an exception.

    Raises:
        OSError: for example, the disk is full; the old file is then kept, as after any other exception, unless only
            flushing the rename failed.
    """
    path = Path(path)
    make_directory(path.parent)
    partial = path.with_name(f"{path.name[:200]}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 with `write_bytes`."""
    write_bytes(path, text.encode())


def nowhere() -> TextIO:
    """Return a stream that keeps nothing, for output that nobody reads any more."""
    return open(os.devnull, "w", encoding="utf-8")


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, and flush their entries to the disk.

    Raises:
        StateError: a file or a dangling link has its name, or the name of a parent.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StateError(f"{error.filename} is not a folder, and one is needed there; name another folder") from error
    for folder in reversed(missing):
        sync_directory(folder.parent)


def check_folder(path: Path, remedy: str = "name another folder") -> None:
    """Raise StateError unless files can be written to a folder, which need not exist yet."""
    path = path.absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise StateError(f"{there} is a file where a folder is needed; {remedy}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StateError(f"{there}: no permission to write there; {remedy}")


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk; without this, a rename may be lost in a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Lock a file (created if missing) or directory within the block; the lock also ends with the process.

    Args:
        path: file or directory to lock, against processes that lock it in the same way.
        wait: wait while another process holds the lock.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
        StateError: the system has no such locks.
    """
    try:
        import fcntl  # not on Windows
    except ImportError as error:
        raise StateError(f"{path} cannot be locked: {WINDOWS}") from error
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


WINDOWS = "tss needs POSIX file locks and signals, which Windows does not have; use WSL 2, Linux or macOS"


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return deterministic JSON text: keys keep their order, NaN is refused."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: it is not JSON, or Python cannot read it (nested too deeply, a number of thousands of digits, NaN),
            or an object has a key twice, whose first value would otherwise be dropped silently.
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_twins)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_reason(error: ValueError) -> str:
    """Return why a parser failed; for a number with too many digits, without Python's advice about its own limit."""
    return "a number of thousands of digits" if "digits" in str(error) else str(error)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twin[:80]!r} appears twice in an object")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


def sha256(content: bytes | str | Path) -> str:
    """Return the hexadecimal SHA-256 of bytes, of a text as UTF-8, or of a file."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def safe_name(name: str) -> str:
    """Return a task's name for use in file names: "asc/ding9_ipod" becomes "asc-ding9_ipod"; long names are cut."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)[:NAME_LENGTH].strip("-.") or "task"
