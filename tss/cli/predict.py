"""`tss predict`: answers of learned tasks, JSONL in, JSONL out; each line may name its own task."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.errors import DataError, StateError, TssError
from tss.io import check_folder, write_text

if TYPE_CHECKING:
    from tss.cli.loaded_run import Learned

SKIPPED = 3
"""Exit code where lines were left out."""


@dataclass
class Rows:
    """The good lines of the input: line number, the whole object, and what its task reads of it."""

    where: str
    skip_bad: bool
    numbers: list[int] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    skipped: int = 0

    def refuse(self, error: DataError) -> None:
        """Leave a line out and say so, or stop."""
        if not self.skip_bad:
            raise error
        self.skipped += 1
        print(f"tss: skipped: {' '.join(str(error).split())}", file=sys.stderr)


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    parser = subparsers.add_parser(
        "predict",
        parents=parents,
        help="predict with a learned task, JSONL in, JSONL out",
        description=__doc__,
        epilog='A line holds what its kind of task reads: {"text", "aspect"?}, {"tokens"} or {"source"}; the output is '
        'the same line with "prediction". Rows keep their order. Lines are checked as training data is, and nothing is '
        "written unless all are answered.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run folder, or one that model.tss.save wrote")
    parser.add_argument("--backbone", metavar="NAME", help="model folder or hub name; default: what the folder names")
    parser.add_argument("--tokenizer", metavar="NAME", help="folder or hub name; default: the backbone's own")
    parser.add_argument("--task", metavar="NAME", help='the task of lines without a "task" of their own')
    parser.add_argument("--input", type=Path, metavar="FILE", help="default: standard input")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help=f"leave out lines that cannot be answered, name each on standard error, and end with {SKIPPED}",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    write = writer(args.output, args.input)
    where, data = read_input(args.input)
    learned = _open(args)
    kinds = {name: kind.kind for name, kind in learned.kinds.items()}
    if args.task is not None and args.task not in kinds:
        raise DataError(f"task {args.task!r} is not learned in this folder; it has: {', '.join(kinds)}", "--task")
    # Nothing is answered before every line is known to be right: the output has a line for each, or is not there.
    rows = read_rows(data, where, args.task, kinds, skip_bad=args.skip_bad)
    answered = answer(learned, rows)
    lines = [json.dumps({**row, "prediction": found}, ensure_ascii=False) + "\n" for row, found in answered]
    write("".join(lines))
    if rows.skipped:
        print(f"tss: {rows.skipped} of {rows.skipped + len(lines)} lines were skipped", file=sys.stderr)
    return SKIPPED if rows.skipped else 0


def read_input(path: Path | None) -> tuple[str, bytes]:
    """A name for messages, and the bytes.

    Raises:
        DataError: the file cannot be read.
    """
    if path is None:
        stream = getattr(sys.stdin, "buffer", None)
        return "<stdin>", sys.stdin.read().encode() if stream is None else stream.read()
    try:
        return str(path), path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error


def writer(output: Path | None, source: Path | None) -> Callable[[str], object]:
    """What writes the answers, at once or not at all; looked at before anything is computed.

    Raises:
        StateError: the output is the input, or cannot be written.
    """
    if output is None:
        return sys.stdout.write
    output = output.resolve()
    if source is not None and output.exists() and source.exists() and os.path.samefile(source, output):
        raise StateError(f"--output {output} is the input, which is never written over; name another file")
    if output.is_dir():
        raise StateError(f"--output {output} is a folder; name a file in it")
    if output.exists() and not output.is_file():  # a pipe or a device: nothing there to replace
        return lambda text: output.write_text(text, encoding="utf-8")
    check_folder(output.parent, "name another --output")
    return lambda text: write_text(output, text)


def read_rows(data: bytes, where: str, task: str | None, kinds: dict[str, str], *, skip_bad: bool) -> Rows:
    """The lines, each with its "task", read and checked as training data is.

    Raises:
        DataError: with the line, what it lacks, and what there is; with `skip_bad` only where there is no line at all.
    """
    rows = Rows(where, skip_bad)
    for number, row in _parsed(data, rows):
        try:
            name, example = _checked(row, where, number, task, kinds)
        except DataError as error:
            rows.refuse(error)
            continue
        rows.numbers.append(number)
        rows.objects.append({**row, "task": name})
        rows.inputs.append((name, example))
    return rows


def _parsed(data: bytes, rows: Rows) -> Iterator[tuple[int, Any]]:
    from tss.data import parse_line, split_lines

    for number, line in split_lines(data, rows.where):
        try:
            value = parse_line(line, rows.where, number)
        except DataError as error:
            rows.refuse(error)
            continue
        yield number, value


def _checked(row: Any, where: str, number: int, task: str | None, kinds: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """A line's task, and what the task reads of it."""
    from tss.data import Malformed, check_input

    if not isinstance(row, dict):
        raise DataError(f"expected a JSON object, found {type(row).__name__}", where, number)
    name = row.get("task", task)
    if name is None:
        raise DataError('no task: give --task NAME, or "task" in the line', where, number)
    if not isinstance(name, str) or name not in kinds:
        raise DataError(f"task {name!r} is not learned in this folder; it has: {', '.join(kinds)}", where, number)
    try:
        example = check_input({key: value for key, value in row.items() if key != "task"}, kinds[name])
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # the output has the whole line
    except Malformed as error:
        raise DataError(f"{error} (task {name})", where, number) from None
    except UnicodeEncodeError:
        raise DataError("the line holds half of a surrogate pair, which is no character", where, number) from None
    return name, example


def answer(learned: Learned, rows: Rows) -> list[tuple[dict[str, Any], Any]]:
    """Each good line with its answer; a line that makes its batch fail is looked for and named.

    Raises:
        DataError: naming that line.
    """
    try:
        return list(zip(rows.objects, learned.predict(rows.inputs), strict=True))
    except (ValueError, IndexError, RuntimeError):
        answered = []
    for number, row, example in zip(rows.numbers, rows.objects, rows.inputs, strict=True):
        try:
            answered.append((row, learned.predict([example])[0]))
        except (ValueError, IndexError, RuntimeError) as error:
            rows.refuse(DataError(f"cannot be answered: {error}", rows.where, number))
    return answered


def _open(args: argparse.Namespace) -> Learned:
    folder = args.folder
    try:
        from tss.cli.loaded_run import open_learned

        return open_learned(folder, backbone=args.backbone, tokenizer=args.tokenizer)
    except FileNotFoundError as error:
        raise StateError(f"{folder}: not a run folder ({error.filename} is missing)") from error
    except ValueError as error:
        if isinstance(error, TssError):
            raise
        raise StateError(f"{folder}: cannot be read: {error}") from error
