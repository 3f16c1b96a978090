"""What a run keeps on disk to go on after a crash: `state/run.json` is the one file that says what is finished."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tss.errors import StateError
from tss.io import safe_name, sha256, to_json, write_text

FORMAT = 2

FREE_KEYS = ("log_seconds", "checkpoint_steps", "reevaluate")
"""Configuration keys that cannot change a result, so a resume may change them."""


@dataclass(frozen=True)
class Layout:
    """The files of a run folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.folder / "env.json"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def matrix(self) -> Path:
        return self.folder / "matrix.json"

    @property
    def state(self) -> Path:
        return self.folder / "state" / "run.json"

    @property
    def learning(self) -> Path:
        """Saved state inside the task being learned."""
        return self.folder / "state" / "learning.safetensors"

    def predictions(self, index: int, name: str) -> Path:
        return self.folder / "predictions" / f"{index + 1:02d}-{safe_name(name)}.jsonl"


@dataclass(frozen=True)
class SealedTask:
    """A finished task, and what must never change."""

    name: str
    fingerprint: str
    """Of its gates and head."""
    probe: str
    """Of its logits on the probe batch."""


@dataclass
class RunState:
    """Everything finished so far; saved after each task and after each evaluated cell."""

    config: dict[str, Any]
    digests: dict[str, str]
    """Task -> digest of its data."""
    environment: dict[str, Any]
    """What logits depend on besides the weights: device, precision, versions."""
    frozen: str
    """Fingerprint of the backbone's and the adapters' frozen weights."""
    sealed: list[SealedTask] = field(default_factory=list)
    saved: dict[str, Any] | None = None
    """Manifest of the files that hold the sealed tasks; the folder's own follows it."""
    verified: int = 0
    """Rows whose invariants were verified."""
    rows: list[dict[str, dict[str, float]]] = field(default_factory=list)
    """Row i: task -> its metrics after task i; the last row may be unfinished."""
    untrained: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> its metrics before anything was learned, where zero-shot evaluation is on."""
    events_bytes: int = 0
    seconds: float = 0.0
    finished: bool = False

    def save(self, path: Path) -> None:
        """Write atomically, with the content's own SHA-256 inside."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        write_text(path, to_json({"sha256": sha256(to_json(content)), **content}, indent=1) + "\n")


def load_state(path: Path) -> RunState:
    """Read `state/run.json`.

    Raises:
        StateError: if it is truncated, was edited, or has another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        expected = content.pop("sha256")
        version = content.pop("format")
    except (ValueError, KeyError, AttributeError) as error:
        raise StateError(f"{path}: not a whole state file ({error}); it was truncated or edited. {_REMEDY}") from error
    found = sha256(to_json({"format": version, **content}))
    if found != expected:
        raise StateError(f"{path}: its content has SHA-256 {found}, expected {expected}; it was edited. {_REMEDY}")
    if version != FORMAT:
        raise StateError(
            f"{path}: format {version}, this version reads {FORMAT}, in which a run folder is what tss.load opens; "
            "resume with the version that wrote it, or start in another folder"
        )
    content["sealed"] = [SealedTask(**task) for task in content["sealed"]]
    return RunState(**content)


_REMEDY = "Put the file back from a copy, or start in another folder; finished tasks are in tasks/"


def check_same_config(saved: dict[str, Any], given: dict[str, Any]) -> None:
    """A run goes on with the configuration it began with; keys in `FREE_KEYS` may differ.

    Raises:
        StateError: with each key that differs and both values.
    """
    old, new = _flat(saved), _flat(given)
    differing = [
        f"{key}: {old.get(key, '(absent)')!r} in the run, {new.get(key, '(absent)')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in FREE_KEYS
    ]
    if differing:
        raise StateError("cannot resume with another configuration; " + "; ".join(differing))


def check_same_data(saved: dict[str, str], given: dict[str, str]) -> None:
    """The data of every task is what the run began with.

    Raises:
        StateError: naming the tasks whose data differs.
    """
    changed = [task for task in saved if saved[task] != given.get(task)]
    if changed:
        raise StateError(
            f"cannot resume: the data of {', '.join(changed)} is not what the run began with (its digest differs); "
            "put the old files back, or start in another folder"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
