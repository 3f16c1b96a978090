"""`tss predict`: answers of learned tasks, JSONL in, JSONL out; each line may name its own task."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.errors import DataError, StateError, TssError
from tss.io import write_text

if TYPE_CHECKING:
    from tss.cli.learned import Learned

INPUTS = {"classification": "text", "extraction": "tokens", "generation": "source"}


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    parser = subparsers.add_parser(
        "predict",
        parents=parents,
        help="predict with a learned task, JSONL in, JSONL out",
        description=__doc__,
        epilog='A line holds what its kind of task reads: {"text", "aspect"?}, {"tokens"} or {"source"}; the output is '
        'the same line with "prediction". Rows keep their order.',
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run folder, or one that model.tss.save wrote")
    parser.add_argument("--backbone", metavar="NAME", help="model folder or hub name; default: what the folder names")
    parser.add_argument("--tokenizer", metavar="NAME", help="folder or hub name; default: the backbone's own")
    parser.add_argument("--task", metavar="NAME", help='the task of lines without a "task" of their own')
    parser.add_argument("--input", type=Path, metavar="FILE", help="default: standard input")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    where = "<stdin>" if args.input is None else str(args.input)
    lines = sys.stdin if args.input is None else args.input.read_text(encoding="utf-8").splitlines()
    learned = _open(args)
    kinds = {name: kind.kind for name, kind in learned.kinds.items()}
    if args.task is not None and args.task not in kinds:
        raise DataError(f"task {args.task!r} is not learned in this folder; it has: {', '.join(kinds)}", "--task")
    # Nothing is answered before every line is known to be right: the output has a line for each, or is not there.
    rows = read_rows(lines, where, args.task)
    check_rows(rows, where, kinds)
    answers = learned.predict([(row["task"], example_of(row)) for _, row in rows])
    text = "".join(
        json.dumps({**row, "prediction": answer}, ensure_ascii=False) + "\n"
        for (_, row), answer in zip(rows, answers, strict=True)
    )
    if args.output is None:
        sys.stdout.write(text)
    else:
        write_text(args.output, text)
    return 0


def read_rows(lines: Iterable[str], where: str, task: str | None) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers and objects, each with its "task"; empty lines are skipped.

    Raises:
        DataError: a line that is not a JSON object, or has no task while none was given.
    """
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\n"))
        except json.JSONDecodeError as error:
            raise DataError(f"not JSON ({error.msg} at character {error.colno})", where, number) from None
        if not isinstance(row, dict):
            raise DataError(f"expected a JSON object, found {type(row).__name__}", where, number)
        row.setdefault("task", task)
        if row["task"] is None:
            raise DataError('no task: give --task NAME, or "task" in the line', where, number)
        rows.append((number, row))
    return rows


def check_rows(rows: Iterable[tuple[int, dict[str, Any]]], where: str, kinds: dict[str, str]) -> None:
    """Every row's task is learned and its input is there.

    Raises:
        DataError: with the line, what it lacks, and what there is.
    """
    for number, row in rows:
        if row["task"] not in kinds:
            raise DataError(
                f"task {row['task']!r} is not learned in this folder; it has: {', '.join(kinds)}", where, number
            )
        needed = INPUTS[kinds[row["task"]]]
        value = row.get(needed)
        words = needed == "tokens"
        if words and not (isinstance(value, list) and value and all(isinstance(token, str) for token in value)):
            raise DataError(f'expected "tokens", a list of strings, for task {row["task"]}', where, number)
        if not words and not isinstance(value, str):
            found = ", ".join(sorted(row.keys() - {"task"})) or "nothing"
            raise DataError(f'expected "{needed}", a string, for task {row["task"]}; found {found}', where, number)


def example_of(row: dict[str, Any]) -> dict[str, Any]:
    """The row less its answer, if it brought one: predicting reads inputs alone."""
    return {key: value for key, value in row.items() if key not in ("task", "label", "ner_tags", "target")}


def _open(args: argparse.Namespace) -> Learned:
    folder = args.folder
    try:
        from tss.cli.learned import open_learned

        return open_learned(folder, backbone=args.backbone, tokenizer=args.tokenizer)
    except FileNotFoundError as error:
        raise StateError(f"{folder}: not a run folder ({error.filename} is missing)") from error
    except ValueError as error:
        if isinstance(error, TssError):
            raise
        raise StateError(f"{folder}: cannot be read: {error}") from error
