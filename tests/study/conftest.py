"""A tiny study, and finished runs without the minutes that they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.run.conftest import tiny_values, write_tiny_data
from tss.io import sha256, to_json
from tss.run.folder import RunFolder
from tss.run.run_state import RunState, SealedTask
from tss.study.folder import StudyFolder
from tss.study.plan import Cell, cells_of, load_study


@pytest.fixture(scope="session")
def study_data(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("study-data"))


@pytest.fixture
def study_file(tmp_path, tiny_backbone, study_data):
    """A function of keys of the study: the path of its file, of runs of seconds."""

    def make(name: str = "study", **keys) -> Path:
        base = tiny_values(tiny_backbone, study_data)
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"base": "base.yaml", "methods": ["tss", "ncl"], **keys}, sort_keys=False))
        return path

    return make


@pytest.fixture
def cells(study_file):
    """A function of keys of the study: its cells."""
    return lambda **keys: cells_of(load_study(study_file(**keys)))


def pretend(folder: StudyFolder, cell: Cell, matrix: list[list[float | None]], **events: dict[str, object]) -> None:
    """Write the files of a finished run of a cell with these results, and with values for its events by name."""
    run, tasks = RunFolder(folder.run(cell)), cell.config.tasks
    joint = cell.config.method == "mtl"
    rows = [
        {task: {"f1": value} for task, value in zip(tasks, row, strict=True) if value is not None} for row in matrix
    ]
    state = RunState("id", cell.config.resolved(), {}, {}, "frozen", sealed=[SealedTask(t, "f", "p") for t in tasks])
    state.rows, state.finished = rows, True
    lines = [{"event": "run_begin", "tasks": tasks, "joint": joint, "kinds": {}}]
    for index, task in enumerate(tasks):
        lines.append({"event": "task_begin", "task": task, "index": index, **events.get("begin", {})})
        lines.append({"event": "task_end", "task": task, "index": index, **events.get("end", {})})
    for row, after in zip(rows, tasks, strict=True):
        for task, cells in row.items():
            lines.append({"event": "evaluated", "task": task, "after": after, "main": "f1", "value": cells["f1"]})
    lines.append({"event": "run_end", **events.get("run_end", {})})
    text = "".join(to_json(line) + "\n" for line in lines)
    run.path.mkdir(parents=True)
    run.events.write_text(text)
    state.events = type(state.events)(len(text.encode()), sha256(text))
    content = {"tasks": tasks, "main": dict.fromkeys(tasks, "f1"), "matrix": matrix, "summary": {}}
    run.write_result(state, run.matrix, to_json(content) + "\n")
    run.write_result(state, run.environment, to_json({"precision": "float32", "threads": 1}) + "\n")
    state.save(run.state)
