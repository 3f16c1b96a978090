"""Results of a run: the matrix of metrics, its continual metrics, and where the files are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tss.data import TaskData
from tss.metrics import continual
from tss.run.config import RunConfig
from tss.run.run_state import RunState

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class RunResult:
    """Result of a finished run.

    `matrix[i][j]` is the main metric (0 to 100) of task j after task i, None where it was not measured;
    `metrics[i][j]` all metrics of that cell; `summary` the continual metrics.
    """

    folder: Path
    tasks: list[str]
    matrix: Matrix
    metrics: list[list[dict[str, float] | None]]
    summary: dict[str, Any]
    seconds: float


def matrix_content(config: RunConfig, tasks: Sequence[TaskData], state: RunState) -> dict[str, Any]:
    """Return the content of matrix.json: a pure function of what was measured, without times."""
    metrics: list[list[dict[str, float] | None]] = [
        [(state.rows[i] if i < len(state.rows) else {}).get(task.name) for task in tasks] for i in range(len(tasks))
    ]
    matrix: Matrix = [
        [None if cell is None else cell[task.kind.main_metric] for task, cell in zip(tasks, row, strict=True)]
        for row in metrics
    ]
    untrained = [state.untrained.get(task.name, {}).get(task.kind.main_metric) for task in tasks]
    return {
        "label": config.label,
        "method": config.method,
        "tasks": [task.name for task in tasks],
        "kinds": {task.name: task.kind.kind for task in tasks},
        "main": {task.name: task.kind.main_metric for task in tasks},
        "test_size": {task.name: len(task.test) for task in tasks},
        "matrix": matrix,
        "metrics": metrics,
        "untrained": untrained if state.untrained else None,
        "summary": continual.summary(
            matrix, untrained=untrained if state.untrained else None, families=[task.family for task in tasks]
        ),
    }
