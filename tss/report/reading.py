"""What a report knows of a run: read from the run folder alone, whole or cut short."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tss.errors import StateError

Matrix = list[list[float | None]]


@dataclass
class Run:
    """One run folder in memory.

    `matrix[i][j]` is the main metric (0 to 100) of task j after task i, None where unmeasured; rows that a run
    never reached hold None alone. `gates[task][layer]` is the packed uint8 tensor (out, ceil(in / 8));
    `series` is what runs called by their methods have in common;
    `signatures[kind]` says how this installation computes the scores of a kind of task.
    """

    folder: Path
    label: str
    method: str
    tasks: list[str]
    kinds: dict[str, str] = field(default_factory=dict)
    main: dict[str, str] = field(default_factory=dict)
    test_size: dict[str, int] = field(default_factory=dict)
    matrix: Matrix = field(default_factory=list)
    own_summary: dict[str, float | None] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    gates: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    series: str = ""

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of one name, in the order in which they were written."""
        return [e for e in self.events if e.get("event") == event]

    def by_task(self, event: str) -> dict[str, dict[str, Any]]:
        """The last event of one name for each task."""
        return {str(e.get("task")): e for e in self.of(event)}

    @property
    def learned(self) -> int:
        """How many tasks have a measured score of their own: the rows of the matrix that exist."""
        return sum(j < len(self.matrix) and self.matrix[j][j] is not None for j in range(len(self.tasks)))

    @property
    def complete(self) -> bool:
        """Whether every task of the sequence was learned and measured."""
        return bool(self.tasks) and self.learned == len(self.tasks)

    @property
    def soft_mask(self) -> str:
        """Where the soft mask was applied, in words."""
        if self.method != "tss":
            return "not used by this method"
        site = dict(self.config.get("method_options") or {}).get("soft_mask", "gradient")
        return {
            "gradient": "gradient: (1 − I) scales the gradient before the optimizer sees it",
            "update": "update: (1 − I) scales the optimizer's whole step",
            "none": "none: no soft mask (ablation)",
        }.get(str(site), str(site))

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds of the whole run, summed over tasks if the run was cut short."""
        ends = self.of("run_end")
        if ends and ends[-1].get("seconds") is not None:
            return float(ends[-1]["seconds"])
        parts = [
            float(e["seconds"]) for e in self.of("task_end") + self.of("evaluated") if e.get("seconds") is not None
        ]
        return sum(parts) if parts else None

    def square(self) -> Matrix:
        """The square part of the matrix over the tasks learned so far."""
        count = self.learned
        return [list(row[:count]) for row in self.matrix[:count]]


def read_run(folder: Path | str) -> Run:
    """Reads a run folder; whatever is missing or torn becomes a note in the report instead of an error.

    Raises:
        StateError: the folder does not exist, or holds neither `matrix.json` nor `events.jsonl`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StateError(f"{folder}: no such run folder")
    notes: list[str] = []
    matrix_file = _read_json(folder / "matrix.json", notes)
    events = _read_events(folder / "events.jsonl", notes)
    if not matrix_file and not events:
        raise StateError(
            f"{folder}: not a run folder (no readable matrix.json or events.jsonl); give a folder that `tss run` wrote"
        )
    config = _read_yaml(folder / "config.yaml", notes)
    begin = next((e for e in events if e.get("event") == "run_begin"), {})
    tasks = [str(t) for t in matrix_file.get("tasks") or begin.get("tasks") or _seen(events)]
    run = Run(
        folder=folder,
        label=str(matrix_file.get("label") or config.get("label") or folder.name),
        method=str(matrix_file.get("method") or begin.get("method") or config.get("method") or "unknown"),
        tasks=tasks,
        kinds=dict(matrix_file.get("kinds") or begin.get("kinds") or {}),
        main=dict(matrix_file.get("main") or {}),
        test_size=dict(matrix_file.get("test_size") or {}),
        own_summary=dict(matrix_file.get("summary") or {}),
        config=config,
        env=_read_json(folder / "env.json", notes),
        events=events,
        notes=notes,
    )
    run.matrix = _square(matrix_file.get("matrix"), events, tasks)
    for event in run.of("evaluated"):
        run.main.setdefault(str(event.get("task")), str(event.get("main", "")))
    for event in run.of("task_begin"):
        run.test_size.setdefault(str(event.get("task")), int(event.get("test") or 0))
    _read_task_files(run)
    if not run.complete:
        notes.append(f"The run has not ended: {run.learned} of {len(tasks)} tasks are learned and measured.")
    return run


def _seen(events: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(e["task"]) for e in events if "task" in e))


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}.")
        return {}
    return value if isinstance(value, dict) else {}


def _read_yaml(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return {}
    except (OSError, yaml.YAMLError) as error:
        notes.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}.")
        return {}
    return value if isinstance(value, dict) else {}


def _read_events(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Every whole line; a crash can leave half a line at the end, which is left out and noted."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        notes.append(f"{path.name} is missing.")
        return []
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError:
            notes.append(f"{path.name}:{number} is not a whole JSON line and is left out.")
            continue
        if isinstance(value, dict):
            events.append(value)
    return events


def _square(stored: Matrix | None, events: list[dict[str, Any]], tasks: list[str]) -> Matrix:
    """The stored matrix padded with None to T x T, holes filled from the `evaluated` events."""
    size = len(tasks)
    matrix: Matrix = [[None] * size for _ in range(size)]
    for i, row in enumerate(stored or []):
        for j, value in enumerate(row):
            if i < size and j < size:
                matrix[i][j] = value
    place = {task: index for index, task in enumerate(tasks)}
    for event in events:
        if event.get("event") != "evaluated":
            continue
        after = event.get("after")
        i = place.get(after, after) if isinstance(after, str) else after
        j = place.get(str(event.get("task")))
        if isinstance(i, int) and j is not None and 0 <= i < size and matrix[i][j] is None:
            matrix[i][j] = event.get("value")
    return matrix


def _read_task_files(run: Run) -> None:
    """Packed gates (the two-dimensional uint8 tensors of a task's file) and signatures of the sealed tasks."""
    from tss.adapters.storage import read_tensors
    from tss.tasks import kind_from_dict

    for path in sorted((run.folder / "tasks").glob("*.safetensors")):
        try:
            tensors, metadata = read_tensors(path)
        except (StateError, OSError, ValueError) as error:
            run.notes.append(f"tasks/{path.name} cannot be read: {error}")
            continue
        packed = {
            name.removeprefix("gates."): tensor.numpy()
            for name, tensor in tensors.items()
            if str(tensor.dtype) == "torch.uint8" and tensor.dim() == 2
        }
        name = str(metadata.get("name", path.stem))
        if packed and name in run.tasks:
            run.gates[name] = packed
        kind = metadata.get("kind")
        if isinstance(kind, dict) and kind.get("kind") not in run.signatures:
            run.signatures[str(kind.get("kind"))] = kind_from_dict(kind).signature()
