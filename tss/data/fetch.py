"""Read the files of the catalog's sources: from the hub, as single files of a repository, or from a folder."""

from __future__ import annotations

import glob
import http.client
import io
import urllib.request
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tss.data.catalog import Entry
from tss.data.formats import File
from tss.data.hub import load_splits
from tss.errors import DataError

RAW_FILES = "https://raw.githubusercontent.com"
TIMEOUT = 60
"""Seconds without a response after which a download fails."""


def fetch_tables(task: str, entry: Entry, folder: Path | None) -> dict[str, Any]:
    """Return the splits of a source of tables, as loaded by `datasets`.

    Args:
        task: name for messages.
        entry: the task's entry in the catalog.
        folder: the folder that contains the sources' folders; None downloads the files.

    Raises:
        DataError: the tables cannot be loaded.
    """
    if folder is None:
        splits = load_splits(entry.name, f"{task} ({entry.source})", revision=entry.revision, files=entry.files)
    else:
        files = {split: _matches(task, entry, folder, names) for split, names in entry.files.items()}
        splits = load_splits("parquet", f"{task} ({folder})", files=files)
    return {split: splits[split] for split in entry.files}


def fetch_files(task: str, entry: Entry, folder: Path | None) -> dict[str, list[File]]:
    """Return the files of each split of a source whose format no library reads.

    Args:
        task: name for messages.
        entry: the task's entry in the catalog.
        folder: the folder that contains the sources' folders; None downloads the files.

    Raises:
        DataError: a file cannot be read or downloaded, or the user must provide the source and `folder` is None.
    """
    if folder is None and entry.place == "folder":
        raise DataError(f"cannot be downloaded: {entry.note}. {by_hand(task, entry)}", task)
    return {
        split: [File(name, _read(task, entry, folder, name)) for name in names] for split, names in entry.files.items()
    }


def by_hand(task: str, entry: Entry) -> str:
    """Return one sentence that says which files the user must put into which folder."""
    names = [name.partition("!")[0] for group in entry.files.values() for name in group]
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"Put {shown} into DIR/{entry.folder(task)}/ and add --from DIR"


def _read(task: str, entry: Entry, folder: Path | None, name: str) -> bytes:
    name, _, member = name.partition("!")
    path = None if folder is None else folder / entry.folder(task) / name
    content = _download(task, entry, name) if path is None else _local(task, entry, path)
    if not member:
        return content
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(member)
    except KeyError as error:
        raise DataError(f"the archive has no {member!r}, from which {task} is created", path or name) from error
    except zipfile.BadZipFile as error:
        raise DataError(f"cannot be read for {task}: {error}", path or name) from error


def _local(task: str, entry: Entry, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"no such file for {task}. {by_hand(task, entry)}", path) from error
    except OSError as error:
        raise DataError(f"cannot be read for {task}: {error.strerror or error}", path) from error


def _download(task: str, entry: Entry, name: str) -> bytes:
    """Download a whole file of a repository: a few megabytes at most, so an interrupted download is discarded."""
    address = f"{RAW_FILES}/{entry.name}/{entry.revision}/{quote(name)}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"cannot be downloaded for {task} ({type(error).__name__}: {error}); try again, or: git clone {entry.page} "
            f"DIR/{entry.folder(task)}, check out {entry.revision} and add --from DIR",
            address,
        ) from error


def _matches(task: str, entry: Entry, folder: Path, names: tuple[str, ...]) -> list[str]:
    root = folder / entry.folder(task)
    found = [match for name in names for match in sorted(glob.glob(f"{glob.escape(str(root))}/{name}"))]
    if not found:
        raise DataError(f"no file {' or '.join(names)} for {task}. {by_hand(task, entry)}", root)
    return found
