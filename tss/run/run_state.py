"""State of a run: what is finished, as one JSON document with a checksum, and what must be unchanged to resume."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tss.errors import StateError
from tss.io import from_json, sha256, to_json, write_text
from tss.run.events import Written

FORMAT = 3

FREE_KEYS = ("log_seconds", "checkpoint_steps", "reevaluate")
"""Configuration keys that cannot change a result, and so may differ on resume."""


@dataclass(frozen=True)
class SealedTask:
    """Finished task, and the hashes of what must never change."""

    name: str
    fingerprint: str
    """Hash of its gates and head."""
    probe: str
    """Hash of its logits on the probe batch."""


@dataclass
class RunState:
    """Everything finished so far; saved after each task and after each evaluated cell."""

    id: str
    """Unique id of this run, which a checkpoint in its folder must name."""
    config: dict[str, Any]
    digests: dict[str, str]
    """Task -> digest of its data."""
    environment: dict[str, Any]
    """What logits depend on besides the weights: device, precision, versions."""
    frozen: str
    """Fingerprint of the backbone's and the adapters' frozen weights."""
    backbone: dict[str, str] = field(default_factory=dict)
    """Digests of the tokenizer and of the backbone's own configuration."""
    sealed: list[SealedTask] = field(default_factory=list)
    saved: dict[str, Any] | None = None
    """Manifest of the files with the sealed tasks; the folder's `tss.json` is written from it afterwards."""
    rows: list[dict[str, dict[str, float]]] = field(default_factory=list)
    """Row i: task -> its metrics after task i; the last row may be unfinished."""
    untrained: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> its metrics before anything was learned, if zero-shot evaluation is on."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the result files, by their names in the folder."""
    events: Written = field(default_factory=Written)
    seconds: float = 0.0
    finished: bool = False

    def save(self, path: Path) -> None:
        """Write the state atomically, with the SHA-256 of its content inside."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        write_text(path, to_json({"sha256": sha256(to_json(content)), **content}, indent=1) + "\n")


def load_state(path: Path) -> RunState:
    """Read `state/run.json`.

    Raises:
        StateError: it is truncated, was edited, or has another format.
    """
    try:
        content = from_json(path.read_bytes())
        expected, version = content.pop("sha256"), content.pop("format")
        found = sha256(to_json({"format": version, **content}))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StateError(
            f"{path}: not a complete state file ({error}); it was truncated or edited. {_REMEDY}"
        ) from error
    if found != expected:
        raise StateError(f"{path}: its content has SHA-256 {found}, expected {expected}; it was edited. {_REMEDY}")
    if version != FORMAT:
        raise StateError(
            f"{path}: format {version}, this version reads {FORMAT}, which records the tokenizer and the files of a "
            "run; resume with the version that wrote it, or start in another folder"
        )
    try:
        content["sealed"] = [SealedTask(**task) for task in content["sealed"]]
        content["events"] = Written(**content["events"])
        return RunState(**content)
    except (KeyError, TypeError) as error:
        raise StateError(f"{path}: not the state of a run ({error}). {_REMEDY}") from error


_REMEDY = "Restore the file from a copy, or start in another folder; finished tasks are in tasks/"


def check_same_config(saved: dict[str, Any], given: dict[str, Any], learned: Iterable[str] = ()) -> list[str]:
    """Check that a run resumes with its configuration; `FREE_KEYS` and settings of tasks not yet learned may differ.

    Args:
        saved: the configuration saved in the run.
        given: the configuration to resume with.
        learned: the tasks whose settings can no longer change.

    Returns:
        Tasks whose own settings (under `overrides`) differ.

    Raises:
        StateError: other keys differ; the message has each key and both values.
    """
    saved, given, past = copy.deepcopy(saved), copy.deepcopy(given), set(learned)
    before, after = saved.get("overrides") or {}, given.get("overrides") or {}
    to_come = [task for task in {**before, **after} if task not in past]
    changed = [task for task in to_come if before.pop(task, None) != after.pop(task, None)]
    if differing := differences(flattened(saved), flattened(given), "in the run", "now"):
        raise StateError(
            "cannot resume with another configuration; " + "; ".join(differing) + ". Leave these out, or start in "
            "another folder; settings of tasks that are not yet learned may change, as overrides.TASK.KEY=value"
        )
    return changed


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str, now: str) -> list[str]:
    """Return a line for each key in which two flattened configurations differ, except `FREE_KEYS`, with both values."""
    return [
        f"{key}: {old.get(key, '(absent)')!r} {where}, {new.get(key, '(absent)')!r} {now}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in FREE_KEYS
    ]


def check_same(what: str, saved: dict[str, str], given: dict[str, str]) -> None:
    """Check that what results depend on is what the run began with.

    Args:
        what: description of it, with a placeholder for the names that differ.
        saved, given: name -> digest.

    Raises:
        StateError: a digest differs; the message names what differs.
    """
    changed = [name for name in saved if saved[name] != given.get(name)]
    if changed:
        raise StateError(
            f"{what.format(' and '.join(changed))} is not what the run began with (its digest differs); restore the "
            "old files, or start in another folder"
        )


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flattened(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
