"""Where the files of the catalog's sources are read: the hub, single files of a repository, or a folder."""

from __future__ import annotations

import glob
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tss.data.catalog import Entry
from tss.data.formats import File
from tss.data.hub import load_splits
from tss.errors import DataError

RAW_FILES = "https://raw.githubusercontent.com"


def fetch_tables(task: str, entry: Entry, folder: Path | None) -> dict[str, Any]:
    """The splits of a source of tables, as `datasets` gives them.

    Args:
        task: for messages.
        entry: of the catalog.
        folder: holds the sources' folders; None: they are downloaded.

    Raises:
        DataError: they cannot be had.
    """
    if folder is None:
        splits = load_splits(entry.name, f"{task} ({entry.source})", revision=entry.revision, files=entry.files)
    else:
        files = {split: _matches(task, entry, folder, names) for split, names in entry.files.items()}
        splits = load_splits("parquet", f"{task} ({folder})", files=files)
    return {split: splits[split] for split in entry.files}


def fetch_files(task: str, entry: Entry, folder: Path | None) -> dict[str, list[File]]:
    """The files of each split of a source that no library reads.

    Args:
        task: for messages.
        entry: of the catalog.
        folder: holds the sources' folders; None: they are downloaded, once, into the cache of `datasets`.

    Raises:
        DataError: one cannot be had, or the source is one that a user provides and `folder` is None.
    """
    if folder is None and entry.place == "folder":
        raise DataError(f"cannot be downloaded: {entry.note}. {by_hand(task, entry)}", task)
    return {
        split: [File(name, _read(task, entry, folder, name)) for name in names] for split, names in entry.files.items()
    }


def by_hand(task: str, entry: Entry) -> str:
    """What a user puts where, in one sentence."""
    names = [name.partition("!")[0] for group in entry.files.values() for name in group]
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"Put {shown} into DIR/{entry.folder(task)}/ and add --from DIR"


def _read(task: str, entry: Entry, folder: Path | None, name: str) -> bytes:
    name, _, member = name.partition("!")
    path = _download(task, entry, name) if folder is None else folder / entry.folder(task) / name
    try:
        if not member:
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except FileNotFoundError as error:
        raise DataError(f"no such file for {task}. {by_hand(task, entry)}", path) from error
    except KeyError as error:
        raise DataError(f"the archive has no {member!r}, which {task} is made of", path) from error
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read for {task}: {error}", path) from error


def _download(task: str, entry: Entry, name: str) -> Path:
    import datasets  # heavy

    address = f"{RAW_FILES}/{entry.name}/{entry.revision}/{quote(name)}"
    try:
        manager = datasets.DownloadManager(download_config=datasets.DownloadConfig(disable_tqdm=True))
        return Path(str(manager.download(address)))
    except Exception as error:  # dozens of kinds, as with `load_dataset`
        reason = str(error).strip().splitlines()
        raise DataError(
            f"cannot be downloaded for {task} ({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
            f"try again, or: git clone {entry.page} DIR/{entry.folder(task)}, check out {entry.revision} and add "
            "--from DIR",
            address,
        ) from error


def _matches(task: str, entry: Entry, folder: Path, names: tuple[str, ...]) -> list[str]:
    root = folder / entry.folder(task)
    found = [match for name in names for match in sorted(glob.glob(f"{glob.escape(str(root))}/{name}"))]
    if not found:
        raise DataError(f"no file {' or '.join(names)} for {task}. {by_hand(task, entry)}", root)
    return found
