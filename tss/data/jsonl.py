"""Folders of JSONL files: `<family>/<task>/{train,validation,test}.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tss.errors import DataError
from tss.io import from_json, parse_reason

MAX_LINE_BYTES = 16 * 2**20
"""Maximum number of bytes in a line of data; a book has about one million."""
BOM = b"\xef\xbb\xbf"
EMPTY = "the file is empty: expected one JSON object per line"
SPLITS = ("train", "validation", "test")

Row = tuple[int, object]  # line number, counted from 1, and the parsed value of the line


def list_folder(root: Path | str) -> list[str]:
    """Return the names "family/task" of all task folders (those with a train.jsonl), sorted.

    Raises:
        DataError: `root` is not a folder.
    """
    folder = Path(root)
    if not folder.is_dir():
        seen = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise DataError(
            f"no such data folder{seen}; expected <family>/<task>/{{train,validation,test}}.jsonl in it", folder
        )
    return sorted(file.parent.relative_to(folder).as_posix() for file in folder.glob("*/*/train.jsonl"))


def read_task(root: Path | str, name: str) -> dict[str, tuple[Path, list[Row]]]:
    """Return each split's file and its lines; a missing validation file has no entry.

    Raises:
        DataError: the folder, the task, train.jsonl or test.jsonl is missing, or a line is not JSON.
    """
    available = list_folder(root)
    folder = Path(root) / name
    if name not in available:
        known = ", ".join(available) or "none"
        if folder.is_dir() and name.count("/") == 1:
            raise DataError("expected train.jsonl in this folder, found none", folder)
        raise DataError(f"no task {name!r} here; there are: {known}", root)
    if not (folder / "test.jsonl").is_file():
        raise DataError("expected test.jsonl in this folder, found none", folder)
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    return {split: (path, list(read_lines(path))) for split, path in files.items() if os.path.lexists(path)}


def read_lines(path: Path | str) -> Iterator[Row]:
    """Yield the parsed lines of a JSONL file, numbered from 1.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8, blank, too long, or not JSON.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error
    for number, line in split_lines(data, path):
        yield number, parse_line(line, path, number)


def split_lines(data: bytes, where: Path | str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of JSONL content, numbered from 1; only a line feed ends a line, whatever the texts contain.

    Raises:
        DataError: the content is blank.
    """
    if not data.strip():
        raise DataError(EMPTY, where)
    lines = data.removeprefix(BOM).split(b"\n")
    yield from enumerate(lines[:-1] if lines[-1] == b"" else lines, start=1)


def stream_lines(stream: BinaryIO, where: Path | str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines as `split_lines`, reading one at a time; cut too long ones to a length that `parse_line` rejects.

    Raises:
        DataError: the stream is empty.
    """
    number, goes_on = 0, False
    while piece := stream.readline(MAX_LINE_BYTES + 2):
        if not goes_on:
            number += 1
            yield number, (piece.removeprefix(BOM) if number == 1 else piece).removesuffix(b"\n")
        goes_on = not piece.endswith(b"\n")
    if not number:
        raise DataError(EMPTY, where)


def parse_line(line: bytes, where: Path | str, number: int) -> object:
    """Parse one line.

    Raises:
        DataError: the line is not UTF-8, blank, longer than `MAX_LINE_BYTES`, or not JSON.
    """
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"the line has more than the limit of {MAX_LINE_BYTES:,} bytes: split the text", where, number)
    if not line.strip():
        raise DataError("blank line: expected a JSON object", where, number)
    try:
        return from_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start} of the line", where, number) from error
    except json.JSONDecodeError as error:
        place = f"{error.msg} at character {error.colno}"
        raise DataError(f"not JSON ({place}); expected one JSON object per line", where, number) from error
    except ValueError as error:
        raise DataError(f"cannot be read as JSON: {parse_reason(error)}", where, number) from error
