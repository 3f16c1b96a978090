"""Build a task of the catalog: fetch its source, convert it, validate it, and write it to a data folder as a whole.

Next to its splits, a task's folder contains `source.json`: the source, the digest of each file, and the digest of the
catalog entry. A task whose folder matches it is kept. Any other task is built in a separate folder inside `.partial`
and renamed when complete, so that a task is either complete or absent.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tss.data.catalog import TABLES, Entry
from tss.data.fetch import fetch_files, fetch_tables
from tss.data.formats import column_example, column_names, dialogue_examples, read_files
from tss.data.jsonl import SPLITS
from tss.data.sampling import by_class, by_label
from tss.data.schema import Example, Malformed, check_example, infer_kind
from tss.data.source import load_task
from tss.errors import DataError
from tss.io import from_json, locked, make_directory, sha256, sync_directory, to_json, write_text
from tss.seeding import stream

SEED = 2021
RECORD, PARTIAL = "source.json", ".partial"
Splits = dict[str, list[Example]]


@dataclass(frozen=True)
class Obtained:
    """A task in a data folder.

    Attributes:
        folder: the task's folder.
        kept: whether it existed already and was kept.
        sizes: split -> number of examples.
    """

    folder: Path
    kept: bool
    sizes: dict[str, int]


@contextlib.contextmanager
def filling(root: Path) -> Iterator[None]:
    """Lock a data folder for writing tasks, and remove the partial files of a process that was killed.

    Raises:
        DataError: another process holds the lock.
    """
    partial = root / PARTIAL
    make_directory(root)
    try:
        with locked(root, wait=False):
            shutil.rmtree(partial, ignore_errors=True)
            yield
            shutil.rmtree(partial, ignore_errors=True)
    except BlockingIOError as error:
        raise DataError("another process is writing data to this folder; wait for it", root) from error


def obtain(
    task: str,
    entry: Entry,
    root: Path,
    *,
    source: Path | None = None,
    replace: bool = False,
    any_size: bool = False,
) -> Obtained:
    """Return the task in `root`, building it unless it exists already; call inside `filling`.

    Args:
        task: "family/task".
        entry: the task's entry in the catalog.
        root: the data folder.
        source: the folder that contains the sources' folders; missing ones are downloaded.
        replace: build the task again and replace whatever exists.
        any_size: accept row counts and sizes that differ from the catalog's.

    Raises:
        DataError: the source cannot be loaded or differs from the catalog entry; or the folder has other content.
    """
    folder = root / task
    before = read_record(folder)
    if before is not None and before["entry"] == fingerprint(entry) and not replace:
        return Obtained(folder, True, before["sizes"])
    if before is None and folder.exists() and not replace:
        raise DataError(
            f"its content differs from what was created for {task}; move it elsewhere, or replace it with --replace",
            folder,
        )
    splits = convert(task, entry, source, any_size=any_size)
    check_sizes(task, entry, splits, any_size=any_size)
    write(task, entry, splits, root)
    return Obtained(folder, False, {split: len(examples) for split, examples in splits.items()})


def convert(task: str, entry: Entry, source: Path | None = None, *, any_size: bool = False) -> Splits:
    """Return the examples of a task, as the catalog describes them; nothing is written.

    Args:
        task: "family/task".
        entry: the task's entry in the catalog.
        source: the folder that contains the sources' folders; missing ones are downloaded.
        any_size: accept a source whose number of rows differs from its dataset card.

    Raises:
        DataError: the source cannot be loaded or does not have the entry's format.
    """
    if source is not None and entry.place != "folder" and not (source / entry.folder(task)).is_dir():
        source = None
    where = f"{task} ({entry.source if source is None else source / entry.folder(task)})"
    if entry.format in TABLES:
        tables = fetch_tables(task, entry, source)
        if not any_size:
            check_rows(entry, {split: len(table) for split, table in tables.items()}, where)
        splits = (
            _from_dialogues(entry, tables) if entry.format == "multiwoz" else _from_columns(task, entry, tables, where)
        )
    else:
        splits = {split: read_files(files, entry) for split, files in fetch_files(task, entry, source).items()}
    if entry.draw.hold_out:
        splits = _held_out(task, splits, entry.draw.hold_out, where)
    if entry.draw.per_label is not None:
        splits["train"] = by_label(splits["train"], entry.draw.per_label, seed=SEED, task=task)
    return {split: _checked(splits[split], f"{where}[{split}]") for split in SPLITS if split in splits}


def check_rows(entry: Entry, found: Mapping[str, int], where: str) -> None:
    """Check a source's numbers of rows against those of its dataset card.

    Raises:
        DataError: they differ.
    """
    for split, count in entry.rows.items():
        if found.get(split) != count:
            raise DataError(
                f"the source has {found.get(split, 0):,} rows in its {split} split, but the table expects {count:,}: "
                "it is incomplete or has changed; --any-size accepts it as it is",
                where,
            )


def check_sizes(task: str, entry: Entry, splits: Splits, *, any_size: bool = False) -> None:
    """Check the sizes of converted splits against the catalog's, where the catalog states them.

    Raises:
        DataError: they differ and `any_size` is False; or a split is empty.
    """
    for split, examples in splits.items():
        expected = entry.sizes.get(split)
        if not examples:
            raise DataError(f"{task} would have no example in its {split} split", entry.source)
        if expected is not None and len(examples) != expected and not any_size:
            raise DataError(
                f"{task} has {len(examples):,} examples in its {split} split, but the table expects {expected:,}: the "
                "source has changed; --any-size accepts it as it is",
                entry.source,
            )


def write(task: str, entry: Entry, splits: Splits, root: Path) -> None:
    """Write a task to a data folder as a whole, replacing any existing one.

    Raises:
        DataError: `load_task` rejects the task.
        OSError: for example the disk is full; existing content is then kept.
    """
    work = root / PARTIAL / uuid.uuid4().hex
    made, old, folder = work / "new" / task, work / "old", root / task
    for split, examples in splits.items():
        write_text(made / f"{split}.jsonl", "".join(to_json(example) + "\n" for example in examples))
    load_task(work / "new", task)
    record = {
        "task": task,
        "source": entry.source,
        "licence": entry.licence,
        "sizes": {split: len(examples) for split, examples in splits.items()},
        "sha256": {f"{split}.jsonl": sha256(made / f"{split}.jsonl") for split in splits},
        "entry": fingerprint(entry),
    }
    write_text(made / RECORD, to_json(record, indent=2) + "\n")
    make_directory(folder.parent)
    if folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync_directory(folder.parent)
    shutil.rmtree(work)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of an unmodified task; None without a record, or if a file is missing, changed or added."""
    try:
        record = from_json((folder / RECORD).read_bytes())
        digests = record["sha256"]
        same = all(sha256(folder / name) == digest for name, digest in digests.items())
        others = {path.name for path in folder.iterdir()} - {RECORD, *digests}
        return record if same and not others and {"entry", "sizes"} <= record.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def fingerprint(entry: Entry) -> str:
    """Return the sha256 of the fields that determine a task's content; rewording the note or licence keeps it."""
    return sha256(json.dumps(entry.model_dump(exclude={"note", "licence", "checked", "sizes", "rows"}), sort_keys=True))


def _from_columns(task: str, entry: Entry, tables: Mapping[str, Any], where: str) -> Splits:
    names = {split: column_names(table, entry, f"{where}[{split}]") for split, table in tables.items()}

    def example(split: str, index: int) -> Example | None:
        try:
            made = column_example(tables[split][index], entry, names[split])
        except IndexError as error:
            raise DataError(str(error), f"{where}[{split}]", index + 1) from None
        return None if "text" in made and not (made["text"] or "").strip() else made

    counts = entry.draw.per_class
    if not counts:
        return {
            split: [row for i in range(len(table)) if (row := example(split, i))] for split, table in tables.items()
        }
    splits: Splits = {}
    (label,) = entry.fields["label"]
    for split, table in tables.items():
        # validation is drawn from the training rows if the source has no validation split
        wanted = {
            name: count for name, count in counts.items() if name == split or (split == "train" and name not in tables)
        }
        try:
            splits |= by_class(table[label], lambda i, split=split: example(split, i), wanted, seed=SEED, task=task)
        except ValueError as error:
            raise DataError(str(error), f"{where}[{split}]") from None
    return splits


def _from_dialogues(entry: Entry, tables: Mapping[str, Any]) -> Splits:
    domain = entry.domain or ""
    return {
        split: [row for each in table for row in dialogue_examples(each, domain)] for split, table in tables.items()
    }


def _held_out(task: str, splits: Splits, counts: Mapping[str, int], where: str) -> Splits:
    """Move training examples to splits that the source lacks; every split keeps the original order."""
    if sum(counts.values()) >= len(splits["train"]):
        raise DataError(
            f"{len(splits['train'])} training examples, of which {sum(counts.values())} are to be held out", where
        )
    order = list(range(len(splits["train"])))
    stream("hold out", SEED, task).shuffle(order)
    result = dict(splits)
    for split, count in counts.items():
        result[split] = [splits["train"][i] for i in sorted(order[:count])]
        order = order[count:]
    return {**result, "train": [splits["train"][i] for i in sorted(order)]}


def _checked(examples: Sequence[Example], where: str) -> list[Example]:
    kind, checked = "", []
    for number, example in enumerate(examples, start=1):
        try:
            kind = kind or infer_kind(example)
            checked.append(check_example(example, kind))
        except Malformed as error:
            raise DataError(str(error), where, number) from None
    return checked
