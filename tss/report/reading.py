"""Read finished or unfinished run folders for a report; the state takes precedence, and differences are reported."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tss.errors import ConfigError, StateError
from tss.io import from_json, sha256, to_json
from tss.report.run import Matrix, Run
from tss.run.config_files import read_yaml
from tss.run.events import check_events
from tss.run.folder import RunFolder
from tss.run.run_state import RunState

SHOWN = 3
"""Maximum number of contradictions reported one by one; the rest are counted."""
EXAMPLES, MOST_EXAMPLES = 3, 60
"""Maximum number of predictions shown per task, and of tasks for which they are shown."""


def read_run(folder: Path | str) -> Run:
    """Read a run folder; missing files, and files changed since the run wrote them, are noted in the result.

    The state, which contains its own checksum and those of other files, takes precedence over all of them.

    Raises:
        StateError: the folder does not exist, or has neither a readable `matrix.json` nor `events.jsonl`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StateError(f"{folder}: no such run folder")
    notes: list[str] = []
    damage: list[str] = []
    state = _read_state(RunFolder(folder), damage)
    matrix_file = _read_json(folder / "matrix.json", notes, damage)
    events = _read_events(folder / "events.jsonl", notes, damage, state)
    if not matrix_file and not events:
        raise StateError(
            f"{folder}: not a run folder (no readable matrix.json or events.jsonl); give a folder that `tss run` wrote"
        )
    config = state.config if state is not None else _read_yaml(folder / "config.yaml", notes, damage)
    begin = next((e for e in events if e.get("event") == "run_begin"), {})
    tasks = [str(t) for t in config.get("tasks") or begin.get("tasks") or matrix_file.get("tasks") or _seen(events)]
    run = Run(
        folder=folder,
        label=str(config.get("label") or matrix_file.get("label") or folder.name),
        method=str(config.get("method") or begin.get("method") or matrix_file.get("method") or "unknown"),
        tasks=tasks,
        kinds=_mapping(begin.get("kinds")) or _mapping(matrix_file.get("kinds")),
        own_summary=_mapping(matrix_file.get("summary")),
        config=config,
        digests=state.digests if state is not None else {},
        env=_read_json(folder / "env.json", notes, damage),
        events=events,
        notes=notes,
        damage=damage,
    )
    for event in run.of("evaluated"):
        run.main.setdefault(str(event.get("task")), str(event.get("main", "")))
    for event in run.of("task_begin"):
        run.test_size.setdefault(str(event.get("task")), int(event.get("test") or 0))
    run.main = _mapping(matrix_file.get("main")) | run.main
    run.test_size = _mapping(matrix_file.get("test_size")) | run.test_size
    run.matrix = _matrix(run, matrix_file, state)
    _read_task_files(run, state)
    _read_examples(run)
    if damage and state is not None and not state.finished:
        notes.append("The run was stopped; `tss run --resume` writes again what it was writing then.")
    if not run.complete:
        notes.append(f"The run has not ended: {run.learned} of {len(tasks)} tasks are learned and measured.")
    return run


def note_other_data(runs: Sequence[Run]) -> None:
    """Add to the damage of each run the tasks for which an earlier run with the same seed and limits had other data."""
    seen: dict[str, tuple[str, Run]] = {}
    for run in runs:
        for task, digest in run.digests.items():
            first, other = seen.setdefault(_drawn_by(run, task), (digest, run))
            if digest != first:
                run.damage.append(
                    f"task {task} had other data than in {other.folder}, so that their scores cannot be compared; run "
                    "both on the same data."
                )


def _drawn_by(run: Run, task: str) -> str:
    """Return what a task's examples depend on besides the data's content."""
    config, family = run.config, task.split("/", 1)[0]
    own = [_mapping(_mapping(config.get(key)).get(name)) for key, name in (("families", family), ("overrides", task))]
    limits = [_mapping(config.get("limits")), *(_mapping(changes.get("limits")) for changes in own)]
    merged = {key: value for one in limits for key, value in one.items()}
    return to_json([task, config.get("seed"), config.get("data"), config.get("sources"), merged])


def _read_state(files: RunFolder, damage: list[str]) -> RunState | None:
    """Return the state of a run, or None if it is missing or damaged; add differences from it to `damage`."""
    if not files.state.is_file():
        damage.append("state/run.json is missing, so nothing of this run can be checked.")
        return None
    try:
        state = files.load_state()
    except StateError as error:
        damage.append(f"{error}.")
        return None
    damage += [f"{line}." for line in files.changed_results(state)]
    return state


def _matrix(run: Run, matrix_file: dict[str, Any], state: RunState | None) -> Matrix:
    """Return the matrix from the state, else from the events, else from the file; contradicting cells are damage."""
    size, place = len(run.tasks), {task: index for index, task in enumerate(run.tasks)}
    stored = matrix_file.get("matrix")
    rows = [row if isinstance(row, list) else [] for row in (stored if isinstance(stored, list) else [])[:size]]
    told: Matrix = [[value if isinstance(value, (int, float)) else None for value in row[:size]] for row in rows]
    told = [row + [None] * (size - len(row)) for row in told] + [[None] * size for _ in range(size - len(told))]
    measured: dict[tuple[int, int], float] = {}
    for event in run.of("evaluated"):
        after = event.get("after")
        i = place.get(after, -1) if isinstance(after, str) else after
        j = place.get(str(event.get("task")), -1)
        if isinstance(i, int) and 0 <= i < size and j >= 0 and isinstance(event.get("value"), int | float):
            measured[i, j] = event["value"]
    if state is not None:
        measured = {
            (i, place[task]): metrics[run.main[task]]
            for i, row in enumerate(state.rows)
            for task, metrics in row.items()
            if task in place and run.main.get(task) in metrics
        }
    differ = [(i, j) for (i, j), value in measured.items() if told[i][j] not in (None, value)]
    for i, j in differ[:SHOWN]:
        run.damage.append(
            f"matrix.json says {told[i][j]} for {run.tasks[j]} after {run.tasks[i]}, but {measured[i, j]} was measured."
        )
    if len(differ) > SHOWN:
        run.damage.append(f"matrix.json contradicts what was measured in {len(differ) - SHOWN} more cells.")
    for (i, j), value in measured.items():
        told[i][j] = value
    return told


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _seen(events: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(e["task"]) for e in events if "task" in e))


def _read_json(path: Path, notes: list[str], damage: list[str]) -> dict[str, Any]:
    try:
        value = from_json(path.read_bytes())
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError) as error:
        damage.append(f"{path.name} cannot be read: {error}.")
        return {}
    return _mapping(value)


def _read_yaml(path: Path, notes: list[str], damage: list[str]) -> dict[str, Any]:
    try:
        return _mapping(read_yaml(path.read_text(encoding="utf-8"), path.name))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
    except (OSError, ValueError, ConfigError) as error:
        damage.append(f"{path.name} cannot be read: {error}.")
    return {}


def _read_events(path: Path, notes: list[str], damage: list[str], state: RunState | None) -> list[dict[str, Any]]:
    """Return the events of all complete lines; a partial line, as left by a crash, is skipped and noted."""
    try:
        data = path.read_bytes()
    except OSError:
        notes.append(f"{path.name} is missing.")
        if state is not None and state.events.bytes:
            damage.append(f"{path.name} is missing; the run wrote {state.events.bytes} bytes of it.")
        return []
    try:
        if state is not None:
            check_events(path, state.events)
    except StateError as error:
        damage.append(f"{error}.")
    events, read = [], 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        kept, read = state is None or read < state.events.bytes, read + len(line) + 1
        if not line:
            continue
        try:
            value = from_json(line)
        except ValueError:
            notes.append(f"{path.name}:{number} is not a complete JSON line and is left out.")
            continue
        # events after the saved state are repeated on resume and not covered by a checksum: keep only those that are
        # drawn, not counted
        if isinstance(value, dict) and (kept or value.get("event") in ("step", "epoch")):
            events.append(value)
    return events


def _read_task_files(run: Run, state: RunState | None) -> None:
    """Read packed gates (the two-dimensional uint8 tensors of a task's file) and signatures of the sealed tasks."""
    from tss.adapters.storage import read_tensors
    from tss.tasks import kind_from_dict

    expected = {} if state is None or state.saved is None else {e["file"]: e["sha256"] for e in state.saved["tasks"]}
    there = sorted(run.folder.glob("tasks/*.safetensors"))
    for path in there if state is None else [run.folder / name for name in expected]:
        name = path.relative_to(run.folder).as_posix()
        try:
            tensors, metadata = read_tensors(path)
            if expected and sha256(path) != expected[name]:
                raise StateError(f"{path} is not the file that the run wrote")
            kind = kind_from_dict(metadata["kind"]) if isinstance(metadata.get("kind"), dict) else None
        except (StateError, OSError, ValueError, TypeError, AttributeError) as error:
            run.damage.append(f"{name} cannot be used: {error}.")
            continue
        packed = {
            name.removeprefix("gates."): tensor.numpy()
            for name, tensor in tensors.items()
            if str(tensor.dtype) == "torch.uint8" and tensor.dim() == 2
        }
        task = str(metadata.get("name", path.stem))
        if packed and task in run.tasks:
            run.gates[task] = packed
        if kind is not None and kind.kind not in run.signatures:
            run.signatures[kind.kind] = kind.signature()


def _read_examples(run: Run) -> None:
    """Read the first predictions of each task, up to `MOST_EXAMPLES` tasks."""
    for place, task in enumerate(run.tasks[:MOST_EXAMPLES]):
        path = RunFolder(run.folder).predictions(place, task)
        try:
            with path.open("rb") as file:
                values = [from_json(line) for line in itertools.islice(file, EXAMPLES)]
            run.examples[task] = [(value["prediction"], value["reference"]) for value in values]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError) as error:
            run.damage.append(f"predictions/{path.name} cannot be read: {error}.")
