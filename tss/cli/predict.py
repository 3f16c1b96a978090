"""`tss predict`: predict with learned tasks, from JSONL to JSONL; each line can name its own task."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tss.errors import ConfigError, DataError, StateError, TssError
from tss.io import check_folder, replacing

if TYPE_CHECKING:
    from tss.run.learned import Learned

SKIPPED = 3
"""Exit code if lines were skipped."""
WINDOW = 4096
"""Maximum number of lines in memory at a time; they are answered together and written in their order."""
PREDICTED, CONFIDENCE = "prediction", "confidence"


@dataclass(frozen=True)
class Reader:
    """Options for reading lines.

    Attributes:
        where: origin of the lines, for messages.
        kinds: task -> name of its kind.
        field: field of a line that names its task.
        task: task of lines that do not name one.
        skip_bad: skip lines that cannot be predicted.
        written: fields that predictions add, which no line may have.
    """

    where: str
    kinds: dict[str, str]
    field: str
    task: str | None
    skip_bad: bool
    written: tuple[str, ...]


@dataclass
class Rows:
    """Valid lines of the input: line numbers, whole objects, and (task, fields that the task reads)."""

    reader: Reader
    numbers: list[int] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    skipped: int = 0

    def refuse(self, error: DataError) -> None:
        """Skip a line and report it, or raise the error if lines may not be skipped."""
        if not self.reader.skip_bad:
            raise error
        self.skipped += 1
        print(f"tss: skipped: {' '.join(str(error).split())}", file=sys.stderr)


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "predict",
        parents=parents,
        help="predict with learned tasks, from JSONL to JSONL",
        description=__doc__,
        epilog='The fields of a line depend on the kind of its task: {"text", "aspect"?}, {"tokens"} or {"source"}. '
        'Output lines are the input lines with the task and "prediction" added. Rows of different tasks share batches '
        "if they can. "
        "Lines are validated like training data, and a file is validated as a whole before the first prediction. "
        "--output FILE is written as a whole or not at all. Standard output, pipes and devices get lines as they are "
        f"predicted, {WINDOW} at a time; after a failure the lines written are correct and the rest is missing.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="run folder, or a folder written by model.tss.save")
    parser.add_argument(
        "--backbone", metavar="NAME", help="model folder or hub name (default: the one named in FOLDER)"
    )
    parser.add_argument("--tokenizer", metavar="NAME", help="folder or hub name (default: the backbone's own)")
    parser.add_argument("--task", metavar="NAME", help="task of the lines that do not name one")
    parser.add_argument(
        "--task-field", metavar="FIELD", default="task", help="field of a line that names its task (default: task)"
    )
    parser.add_argument(
        "--confidence",
        action="store_true",
        help='add "confidence": the softmax probability of the label, or of each tag; generated text has none',
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help="JSONL file (default: standard input)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSONL file (default: standard output)")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help=f"skip lines that cannot be predicted, report each on standard error, and exit with {SKIPPED}",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    output = writer(args.output, args.input)
    _check_field(args.task_field)
    with contextlib.ExitStack() as files:
        where, stream = open_input(args.input, files)
        learned = open_folder(args)
        kinds = {name: kind.kind for name, kind in learned.kinds.items()}
        if args.task is not None and args.task not in kinds:
            from tss.run.learned import unknown_task

            raise DataError(unknown_task(args.task, kinds), "--task")
        written = (PREDICTED, CONFIDENCE) if args.confidence else (PREDICTED,)
        reader = Reader(where, kinds, args.task_field, args.task, args.skip_bad, written)
        if args.input is not None and args.input.is_file() and not args.skip_bad:  # a file can be read twice
            for _ in windows(stream, reader):
                pass
            stream.seek(0)
        write = files.enter_context(output)
        skipped = answered = cut = 0
        for rows in windows(stream, reader):
            lines, shortened = answer(learned, rows, args.confidence)
            cut += shortened
            write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            answered, skipped = answered + len(lines), skipped + rows.skipped
    if cut:
        print(f"tss: {cut} of {answered} inputs were longer than their task reads and were truncated", file=sys.stderr)
    if skipped:
        print(f"tss: {skipped} of {skipped + answered} lines were skipped", file=sys.stderr)
    return SKIPPED if skipped else 0


def _check_field(name: str) -> None:
    from tss.data.schema import FIELDS

    taken = {PREDICTED, CONFIDENCE, *(field for needed, optional in FIELDS.values() for field in (*needed, *optional))}
    if not name:
        raise ConfigError("--task-field is empty; name a field: --task-field task")
    if name in taken:
        raise ConfigError(f"--task-field {name} is a field that tasks read or write; name another: --task-field task")


def open_input(path: Path | None, files: contextlib.ExitStack) -> tuple[str, BinaryIO]:
    """Return a name for messages and the binary stream, which `files` closes.

    Raises:
        DataError: the file cannot be read.
    """
    if path is None:
        stream = getattr(sys.stdin, "buffer", None)
        if stream is None:  # replaced by a text stream
            import io

            stream = io.BytesIO(sys.stdin.read().encode())
        return "<stdin>", stream
    try:
        return str(path), files.enter_context(path.open("rb"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error


def writer(output: Path | None, source: Path | None) -> AbstractContextManager[Callable[[str], object]]:
    """Return a context manager that yields a function to write predictions; check the output before any computation.

    A file is written as a whole at the end of the block if there is no exception; other outputs are written at once.

    Raises:
        StateError: the output is the input, or cannot be written.
    """
    if output is None:
        return contextlib.nullcontext(_to_stdout)
    output = output.resolve()
    if source is not None and output.exists() and source.exists() and os.path.samefile(source, output):
        raise StateError(f"--output {output} is the input, which is never overwritten; name another file")
    if output.is_dir():
        raise StateError(f"--output {output} is a folder; name a file in it")
    if output.exists() and not output.is_file():  # a pipe or a device: there is no file to replace
        return _into(lambda: output.open("wb"))
    check_folder(output.parent, "name another --output")
    return _into(lambda: replacing(output))


def _to_stdout(text: str) -> None:
    """Write JSONL, which is UTF-8 whatever the locale's encoding is."""
    stream: Any = getattr(sys.stdout, "buffer", None)
    if stream is None:  # replaced by a text stream
        sys.stdout.write(text)
    else:
        sys.stdout.flush()
        stream.write(text.encode())
        stream.flush()


@contextlib.contextmanager
def _into(opened: Callable[[], AbstractContextManager[BinaryIO]]) -> Iterator[Callable[[str], object]]:
    with opened() as file:
        yield lambda text: file.write(text.encode())


def windows(stream: BinaryIO, reader: Reader) -> Iterator[Rows]:
    """Yield up to `WINDOW` lines at a time, each with its task, parsed and checked like training data.

    Raises:
        DataError: a line is invalid; names the line and the problem. With `skip_bad`, only if there are no lines.
    """
    from tss.data import parse_line, stream_lines

    lines = stream_lines(stream, reader.where)
    while window := list(itertools.islice(lines, WINDOW)):
        rows = Rows(reader)
        for number, line in window:
            try:
                row = parse_line(line, reader.where, number)
                name, example = _checked(row, number, reader)
            except DataError as error:
                rows.refuse(error)
                continue
            rows.numbers.append(number)
            rows.objects.append({**row, reader.field: name})  # type: ignore[dict-item]
            rows.inputs.append((name, example))
        yield rows


def _checked(row: Any, number: int, reader: Reader) -> tuple[str, dict[str, Any]]:
    """Return a line's task, and the fields that the task reads."""
    from tss.data import Malformed, check_input
    from tss.run.learned import unknown_task

    where = reader.where
    if not isinstance(row, dict):
        raise DataError(f"expected a JSON object, found {type(row).__name__}", where, number)
    if taken := [field for field in reader.written if field in row]:
        raise DataError(
            f'"{taken[0]}" is in the line, and the answer would replace it; rename the field', where, number
        )
    name = reader.task if row.get(reader.field) is None else row[reader.field]
    if name is None:
        raise DataError(f'no task: give --task NAME, or "{reader.field}" in the line', where, number)
    if not isinstance(name, str) or name not in reader.kinds:
        raise DataError(unknown_task(name, reader.kinds), where, number)
    try:
        rest = {key: value for key, value in row.items() if key != reader.field}
        example = check_input(rest, reader.kinds[name])
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # the output includes the whole line
    except Malformed as error:
        raise DataError(f"{error} (task {name})", where, number) from None
    except UnicodeEncodeError:
        raise DataError("the line contains half of a surrogate pair, not a character", where, number) from None
    return name, example


def answer(learned: Learned, rows: Rows, confidence: bool) -> tuple[list[dict[str, Any]], int]:
    """Return each valid line with its prediction, and the number of inputs that were truncated.

    Raises:
        DataError: a line cannot be predicted, and lines may not be skipped; names the line.
    """
    from tss.run.learned import Question

    lines, cut = [], 0
    found = learned.answer([Question(task, example, most_tokens=sys.maxsize - 1) for task, example in rows.inputs])
    for number, row, one in zip(rows.numbers, rows.objects, found, strict=True):
        if isinstance(one, Exception):
            rows.refuse(DataError(f"cannot be answered: {one}", rows.reader.where, number))
            continue
        extra = {CONFIDENCE: one.details[CONFIDENCE]} if confidence and CONFIDENCE in one.details else {}
        lines.append({**row, PREDICTED: one.prediction, **extra})
        cut += bool(one.details.get("truncated"))
    return lines, cut


def open_folder(args: argparse.Namespace, *, cache_bytes: int | None = None) -> Learned:
    """Open the tasks in the folder of a command line; `cache_bytes` as in `open_learned`.

    Raises:
        StateError, ConfigError: the tasks cannot be opened.
    """
    from tss.study.folder import is_study

    folder = args.folder
    if is_study(folder):
        raise StateError(f"{folder} is the folder of a study: name one of its runs, in {Path(folder) / 'runs'}")
    try:
        from tss.run.learned import open_learned

        return open_learned(folder, backbone=args.backbone, tokenizer=args.tokenizer, cache_bytes=cache_bytes)
    except FileNotFoundError as error:
        raise StateError(f"{folder}: not a run folder ({error.filename} is missing)") from error
    except ValueError as error:
        if isinstance(error, TssError):
            raise
        raise StateError(f"{folder}: cannot be read: {error}") from error
