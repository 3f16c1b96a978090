"""`tss data get`: download and convert the paper's forty tasks; `tss data list`: show where each comes from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.cli import console
from tss.errors import ConfigError, TssError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tss.data.catalog import Entry

COMMIT_SHOWN = 10


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "data",
        parents=parents,
        help="download the paper's forty tasks, or list their sources",
        description=__doc__,
        epilog="Finished tasks are kept: run the same command again to continue.",
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=("get", "list"), help="create tasks in a folder, or show the table")
    parser.add_argument("words", nargs="*", metavar="TASK|FAMILY", help="for example ner/conll2003, ner, ipod")
    parser.add_argument("--all", action="store_true", help="all forty tasks")
    parser.add_argument("--to", metavar="DIR", help="data folder; tasks are written to DIR/<family>/<task>/")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        help="read the files of a source from DIR/<name>/ if it exists (see `tss data list TASK`)",
    )
    parser.add_argument("--replace", action="store_true", help="create tasks again, and replace what is there")
    parser.add_argument("--any-size", action="store_true", help="keep tasks whose sizes differ from the table")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 if a task could not be created."""
    from tss.data.catalog import catalog, select

    if args.action == "list":
        entries = {name: catalog()[name] for name in select(args.words)}
        (print_details if args.words and len(entries) == len(args.words) else print_entries)(entries)
        return 0
    if args.to is None:
        raise ConfigError("say where the tasks go: --to DIR")
    if bool(args.words) == args.all:
        raise ConfigError("name tasks or families, or take all of them with --all" + (", not both" if args.all else ""))
    return get({name: catalog()[name] for name in select(args.words)}, args)


def get(entries: Mapping[str, Entry], args: argparse.Namespace) -> int:
    """Create tasks one after the other; report each failure at once and their number at the end, and continue."""
    from tss.data.obtain import filling, obtain

    source = None if args.source is None else Path(args.source)
    if source is not None and not source.is_dir():
        raise ConfigError(f"--from {source}: no such folder")
    failed = []
    with filling(Path(args.to)):
        for name, entry in entries.items():
            try:
                done = obtain(name, entry, Path(args.to), source=source, replace=args.replace, any_size=args.any_size)
            except TssError as error:
                failed.append(name)
                print(f"tss: {error}", file=sys.stderr, flush=True)
                continue
            sizes = " / ".join(f"{count:,}" for count in done.sizes.values())
            print(f"{name}  {'kept' if done.kept else 'made'}  {sizes}  licence: {entry.licence}", flush=True)
    if failed:
        print(
            f"tss: {len(failed)} of {len(entries)} tasks are missing: {', '.join(failed)}; the others are complete, "
            "and running the same command again creates only what is missing",
            file=sys.stderr,
        )
    return 1 if failed else 0


def print_entries(entries: Mapping[str, Entry]) -> None:
    """Print one line per task."""
    rows = [
        [name, _source(entry), " / ".join(_sizes(entry).values()), entry.checked, entry.licence]
        for name, entry in entries.items()
    ]
    console.print_table(["task", "source", "train / validation / test", "checked", "licence"], rows)
    if any(not entry.pinned and entry.place != "folder" for entry in entries.values()):
        print("\n* a branch, which may change; the others are commits")
    print("\n`tss data list TASK` shows more about one task")


def print_details(entries: Mapping[str, Entry]) -> None:
    """Print the catalog's facts about tasks, and which files a user can provide where instead of a download."""
    from tss.data.fetch import by_hand

    for index, (name, entry) in enumerate(entries.items()):
        facts = {
            "source": entry.source
            + ("" if entry.pinned or entry.place == "folder" else "  (a branch, which may change)"),
            "page": entry.page,
            "licence": entry.licence,
            "sizes": " / ".join(f"{split} {size}" for split, size in _sizes(entry).items()),
            "checked": _checked(entry),
            "note": entry.note or "",
            "by hand": by_hand(name, entry),
        }
        width = max(map(len, facts))
        print("\n" * (index > 0) + name)
        print("\n".join(f"  {key.ljust(width)}  {value}" for key, value in facts.items() if value))


def _source(entry: Entry) -> str:
    if entry.place == "folder":
        return "by hand"
    revision = entry.revision[:COMMIT_SHOWN] if entry.pinned else f"{entry.revision} *"
    return f"{entry.place}:{entry.name}@{revision}"


def _sizes(entry: Entry) -> dict[str, str]:
    splits = dict.fromkeys((*entry.files, *entry.draw.hold_out, *entry.draw.per_class))
    order = [split for split in ("train", "validation", "test") if split in splits]
    return {split: f"{entry.sizes[split]:,}" if split in entry.sizes else "?" for split in order}


def _checked(entry: Entry) -> str:
    if entry.checked == "converted":
        return "the source's own files were converted, and the sizes are the results"
    return "written from the source's documentation; the conversion is tested on small files of its format"
