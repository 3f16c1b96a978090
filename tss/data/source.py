"""Load a task by name: its validated examples, its kind, and a digest of the examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tss.data import generated
from tss.data.hub import PREFIX, read_dataset
from tss.data.jsonl import SPLITS, Row, list_folder, read_task
from tss.data.sampling import hold_out, subsample
from tss.data.schema import Example, Malformed, check_example, infer_kind
from tss.errors import DataError
from tss.tasks import TaskKind, kind_from_dict

GENERATED = "generated"
# Replies are usually scored with BLEU, other generated text with ROUGE-1; a configuration can override this.
MAIN_METRICS = {"drg": "bleu"}

MAX_NAME = 200
"""Maximum number of characters in a task's name: longer ones fit neither file systems nor figures."""

Checked = list[tuple[int, Example]]  # line number, example


@dataclass(frozen=True)
class TaskData:
    """A task ready for training.

    Attributes:
        name: "family/task".
        family: the part of the name before the slash.
        kind: inferred from the fields, with labels from all splits.
        train, validation, test: validated examples with only the fields of their kind.
        digest: sha256 over the examples of all three splits, in order.
    """

    name: str
    family: str
    kind: TaskKind
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    digest: str


def list_tasks(root: Path | str) -> list[str]:
    """Return the names "family/task" of the tasks in a folder, or of the generated tasks for "generated".

    Raises:
        DataError: no such folder, or a "hub:" source, which has a single task whose name the caller chooses.
    """
    if str(root).startswith(PREFIX):
        raise DataError("a hub dataset is one task and has no list; name the task yourself as family/task", root)
    return list(generated.MAKERS) if str(root) == GENERATED else list_folder(root)


def load_task(
    root: Path | str,
    name: str,
    *,
    seed: int = 2021,
    limits: Mapping[str, int | None] | None = None,
    fields: Mapping[str, str] | None = None,
) -> TaskData:
    """Read and check a task; every line is checked before anything is returned.

    Args:
        root: a folder of JSONL tasks, "generated", or "hub:NAME[:CONFIG]".
        name: "family/task"; for a hub dataset, any such name, which becomes the task's.
        seed: seed of the validation split if the data has none, of the subsamples, and of generated tasks. Each task
            uses its own random stream.
        limits: maximum number of examples per split, for example {"train": 500}; classes stay balanced where the data
            allows. None or a missing split keeps all.
        fields: for hub datasets, this project's field name -> the dataset's.

    Raises:
        DataError: the data is invalid; the message gives the problem, file and line, and what was expected.
        ValueError: a limit is for an unknown split or below 1, or there is a field map without a hub dataset.
    """
    _check_limits(limits or {})
    family = check_name(name, root)
    if fields and not str(root).startswith(PREFIX):
        raise ValueError(f"a field map is for hub datasets; {root} is not one")
    rows = _read(root, name, seed, fields)
    kind, checked = _check_rows(rows, family)
    if "validation" not in checked:
        checked["train"], checked["validation"] = _split_off(checked["train"], rows["train"][0], seed, name)
    splits: dict[str, list[Example]] = {}
    for split in SPLITS:
        examples = [example for _, example in checked[split]]
        limit = (limits or {}).get(split)
        splits[split] = examples if limit is None else subsample(examples, limit, seed=seed, task=name, split=split)
    return TaskData(name=name, family=family, kind=kind, digest=digest(splits), **splits)


def check_name(name: str, root: Path | str) -> str:
    """Return the family of a task's name.

    Raises:
        DataError: the name is not "family/task", is longer than `MAX_NAME`, or has characters that are not printable.
    """
    family, slash, short = name.partition("/")
    if not (family and slash and short) or "/" in short or ".." in (family, short):
        raise DataError(f"task {shown(name)} is not named family/task", root)
    if len(name) > MAX_NAME or not name.isprintable():
        raise DataError(
            f"task {shown(name)} ({len(name)} characters): a task's name is one line of at most {MAX_NAME} printable "
            "characters; rename its folder",
            root,
        )
    return family


def shown(name: str) -> str:
    """Return a name for a message, truncated if long."""
    return repr(name if len(name) <= 60 else f"{name[:50]}...")


def digest(splits: Mapping[str, Sequence[Example]]) -> str:
    """Return the sha256 (hex) of the splits' names and examples, regardless of the order of fields in an example."""
    state = hashlib.sha256()
    for split in sorted(splits):
        state.update(f"{split} {len(splits[split])}\n".encode())
        for example in splits[split]:
            state.update(json.dumps(example, sort_keys=True).encode() + b"\n")
    return state.hexdigest()


def _check_limits(limits: Mapping[str, int | None]) -> None:
    for split, limit in limits.items():
        if split not in SPLITS:
            raise ValueError(f"limits: unknown split {split!r}; there are: {', '.join(SPLITS)}")
        if limit is not None and limit < 1:
            raise ValueError(f"limits: {split}={limit} must be at least 1")


def _read(
    root: Path | str, name: str, seed: int, fields: Mapping[str, str] | None
) -> dict[str, tuple[Path | str, list[Row]]]:
    if str(root).startswith(PREFIX):
        return dict(read_dataset(str(root), fields))
    if str(root) != GENERATED:
        return dict(read_task(root, name))
    if name not in generated.MAKERS:
        raise DataError(f"no generated task {name!r}; there are: {', '.join(generated.MAKERS)}")
    made = generated.generate(name, seed=seed)
    return {split: (f"{GENERATED}:{name}[{split}]", list(enumerate(rows, start=1))) for split, rows in made.items()}


def _check_rows(rows: dict[str, tuple[Path | str, list[Row]]], family: str) -> tuple[TaskKind, dict[str, Checked]]:
    """Return the kind, inferred from the first training line, and all examples, checked to be of that kind."""
    name, checked = "", {}
    for split, (where, lines) in rows.items():
        if not lines:
            raise DataError("expected at least one example, found none", where)
        checked[split] = []
        for number, value in lines:
            try:
                name = name or infer_kind(value)  # the first split is train
                checked[split].append((number, check_example(value, name)))
            except Malformed as error:
                raise DataError(str(error), where, number) from None
    if name == "generation":
        metric = {"metric": MAIN_METRICS[family]} if family in MAIN_METRICS else {}
        return kind_from_dict({"kind": name, **metric}), checked
    _check_learnable(rows, checked)
    labels = {label for lines in checked.values() for _, example in lines for label in _labels(example)}
    labels |= {"O"} if name == "extraction" else set()
    return kind_from_dict({"kind": name, "labels": sorted(labels)}), checked


def _labels(example: Example) -> list[str]:
    return example["ner_tags"] if "ner_tags" in example else [example["label"]]


def _classes(example: Example) -> set[str]:
    """Return the classes that must occur in training: the label, or the entity types (B-X and I-X are both X)."""
    if "label" in example:
        return {example["label"]}
    return {tag[2:] for tag in example["ner_tags"] if tag != "O"}


def _check_learnable(rows: dict[str, tuple[Path | str, list[Row]]], checked: dict[str, Checked]) -> None:
    seen = {label for _, example in checked["train"] for label in _classes(example)}
    for split, lines in checked.items():
        for number, example in lines:
            if unseen := sorted(_classes(example) - seen):
                raise DataError(
                    f"label {unseen[0]!r} never occurs in the training split, which has: {', '.join(sorted(seen))}",
                    rows[split][0],
                    number,
                )


def _split_off(train: Checked, where: Path | str, seed: int, name: str) -> tuple[Checked, Checked]:
    if len(train) < 2:
        raise DataError("one training example and no validation file: expected at least two to split off one", where)
    labels = [example.get("label") for _, example in train]
    held = set(hold_out(labels, seed=seed, task=name))
    if not held:
        raise DataError(
            "one example of each class and no validation file: expected more, to split off validation", where
        )
    return (
        [line for i, line in enumerate(train) if i not in held],
        [line for i, line in enumerate(train) if i in held],
    )
