"""`tss tasks`: list the tasks of a data folder with kinds and sizes, and validate every line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tss.cli import console
from tss.errors import DataError

if TYPE_CHECKING:
    from tss.data import TaskData

HEADERS = ("task", "kind", "labels", "train", "validation", "test")


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "tasks", parents=parents, help="list tasks, kinds and sizes", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--data", default="generated", metavar="DIR", help="data folder (default: the generated tasks)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 if a task is malformed."""
    from tss.data import list_tasks

    names = list_tasks(args.data)
    if not names:
        raise DataError("no tasks here; expected <family>/<task>/{train,validation,test}.jsonl", args.data)
    loaded, errors = load_all(args.data, names)
    print_tasks(loaded)
    for error in errors:
        print(f"tss: {error}", file=sys.stderr)
    return 1 if errors else 0


def load_all(data: str, names: Iterable[str], **how: Any) -> tuple[list[TaskData], list[DataError]]:
    """Load each task; return (the valid tasks, the first error of each invalid one)."""
    from tss.data import load_task

    loaded, errors = [], []
    for name in names:
        try:
            loaded.append(load_task(data, name, **how))
        except DataError as error:
            errors.append(error)
    return loaded, errors


def print_tasks(tasks: Iterable[TaskData]) -> None:
    """Print a table of tasks."""
    rows = []
    for task in tasks:
        labels = task.kind.to_dict().get("labels")
        sizes = [str(len(split)) for split in (task.train, task.validation, task.test)]
        rows.append([task.name, task.kind.kind, "" if labels is None else str(len(labels)), *sizes])
    console.print_table(HEADERS, rows, right=(2, 3, 4, 5))
