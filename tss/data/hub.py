"""Load tasks with the Hugging Face `datasets` library, by hub name or from a local folder that the library can read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tss.data.jsonl import Row
from tss.data.schema import FIELDS
from tss.errors import DataError

PREFIX = "hub:"
# Split -> its possible names in a dataset; the first that exists is used.
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


def read_dataset(source: str, fields: Mapping[str, str] | None = None) -> dict[str, tuple[str, list[Row]]]:
    """Return each split's name for messages and its rows, numbered from 1.

    Args:
        source: "hub:NAME", "hub:NAME:CONFIG", and either with "@REVISION" (a branch, a tag or a commit); NAME is a name
            on the hub, a folder of JSON, CSV or Parquet files, or a folder made by `save_to_disk`.
        fields: this project's field name -> the dataset's, for example {"text": "content", "label": "topic"}; other
            fields keep their names.

    Raises:
        DataError: the dataset cannot be loaded (the message says why), has no train or test split, or lacks a field.
    """
    known = {name for needed, optional in FIELDS.values() for name in (*needed, *optional)}
    if unknown := sorted(set(fields or {}) - known):
        raise DataError(f"unknown field {unknown[0]!r} in the field map; there are: {', '.join(sorted(known))}", source)
    name, config, revision = split_source(source)
    splits = load_splits(name, source, config=config, revision=revision)
    result: dict[str, tuple[str, list[Row]]] = {}
    for split, names in SPLIT_NAMES.items():
        name = next((name for name in names if name in splits), None)
        if name is not None:
            result[split] = (f"{source}[{name}]", _rows(splits[name], fields or {}, f"{source}[{name}]"))
        elif split != "validation":
            raise DataError(f"no {split} split; found: {', '.join(splits)}", source)
    return result


def split_source(source: str) -> tuple[str, str | None, str | None]:
    """Split "hub:NAME[:CONFIG][@REVISION]" into its parts; the name of an existing folder may contain "@" and ":"."""
    name = source.removeprefix(PREFIX)
    if os.path.exists(name):  # unlike Path.exists, returns False for a path that no file system allows
        return name, None, None
    name, _, revision = name.partition("@")
    name, _, config = name.partition(":")
    return name, config or None, revision or None


def load_splits(
    name: str,
    where: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    files: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Load the splits of a dataset, by their names in it.

    Args:
        name: name on the hub; a local folder; or "parquet", for local `files`.
        where: origin, for messages.
        config: configuration of the dataset.
        revision: branch, tag or commit; None for the newest.
        files: the files of each split, within the dataset; None for those that the dataset itself names.

    Raises:
        DataError: the dataset cannot be loaded; the message says why.
    """
    import datasets  # slow to import, and not needed for JSONL

    try:
        if (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)
        patterns = None if files is None else {split: list(paths) for split, paths in files.items()}
        return datasets.load_dataset(name, config, data_files=patterns, revision=revision)
    except Exception as error:  # the library raises dozens of types: no network, no such name, bad file, bad config
        reason = str(error).strip().splitlines()
        raise DataError(
            f"the dataset cannot be loaded ({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
            "expected a name on the Hugging Face hub that is cached or can be downloaded (HF_HUB_OFFLINE unset), "
            "or a local folder",
            where,
        ) from error


def _rows(split: Any, fields: Mapping[str, str], where: str) -> list[Row]:
    """Return the examples with this project's field names; class numbers become class names."""
    for ours, theirs in fields.items():
        if theirs not in split.column_names:
            raise DataError(f'no column {theirs!r} for "{ours}"; there are: {", ".join(split.column_names)}', where)
    taken = set(fields.values())
    columns = {**{name: name for name in split.column_names if name not in taken}, **fields}
    names = {ours: class_names(split.features[theirs]) for ours, theirs in columns.items()}
    rows: list[Row] = []
    for number, row in enumerate(split, start=1):
        try:
            rows.append((number, {ours: named(row[theirs], names[ours]) for ours, theirs in columns.items()}))
        except IndexError as error:
            raise DataError(f"{error}; is this split unlabelled?", where, number) from None
    return rows


def class_names(feature: Any) -> list[str] | None:
    """Return the class names of a ClassLabel, or of a list of them; None for any other column."""
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "names", None)


def named(value: Any, names: list[str] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [named(item, names) for item in value]
    if not 0 <= value < len(names):
        raise IndexError(f"class number {value} is not one of the {len(names)} classes")
    return names[value]
