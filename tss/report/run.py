"""One run in memory, as a report uses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tss.methods import METHODS

Matrix = list[list[float | None]]
KEPT = {"own": "adapter's weights", "lora": "LoRA's weights", "masked": "gates of hidden units"}
"""Option `trained` of a method without gates of weights -> what a task keeps for itself."""


@dataclass
class Run:
    """One run folder in memory.

    `matrix[i][j]` is the main metric (0 to 100) of task j after task i, None if unmeasured; rows that a run never
    reached contain only None. `gates[task][layer]` is the packed uint8 tensor (out, ceil(in / 8));
    `examples[task]` contains the first predictions on its test split after the last task, each with its reference;
    `series` is the common label of runs that are labelled by their methods;
    `notes` describe what is missing, `damage` what is not as the run wrote it;
    `digests[task]` is the digest of its data;
    `signatures[kind]` describes how this installation computes the scores of a kind of task.
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
    digests: dict[str, str] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    gates: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    examples: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    series: str = ""

    @cached_property
    def _by_name(self) -> dict[str, list[dict[str, Any]]]:
        table: dict[str, list[dict[str, Any]]] = {}
        for event in self.events:
            table.setdefault(str(event.get("event")), []).append(event)
        return table

    @cached_property
    def _by_task(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        table: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for event in self.events:
            table.setdefault((str(event.get("event")), str(event.get("task"))), []).append(event)
        return table

    def of(self, event: str, task: str | None = None) -> list[dict[str, Any]]:
        """Return the events of one name, and of one task if given, in the order in which they were written."""
        return self._by_name.get(event, []) if task is None else self._by_task.get((event, task), [])

    def by_task(self, event: str) -> dict[str, dict[str, Any]]:
        """Return the last event of one name for each task."""
        return {str(e.get("task")): e for e in self.of(event)}

    @cached_property
    def places(self) -> dict[str, int]:
        """Task -> its position in the sequence."""
        return {task: place for place, task in enumerate(self.tasks)}

    @property
    def joint(self) -> bool:
        """Whether all tasks were learned together, so that only the last row of the matrix is measured."""
        return bool(self.first.get("joint"))

    def own(self, place: int) -> float | None:
        """Return the score of the task at a position just after it was learned; None if all were learned together."""
        return None if self.joint else self.matrix[place][place]

    @cached_property
    def learned(self) -> int:
        """Number of tasks with a measured score of their own: the existing rows; all or none in a joint run."""
        if self.joint:
            return len(self.tasks) if None not in self.matrix[-1] else 0
        return sum(j < len(self.matrix) and self.matrix[j][j] is not None for j in range(len(self.tasks)))

    @property
    def complete(self) -> bool:
        """Whether every task of the sequence was learned and measured."""
        return bool(self.tasks) and self.learned == len(self.tasks)

    @property
    def soft_mask(self) -> str:
        """Description of where the soft mask was applied."""
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
        """Wall-clock seconds of the whole run, summed over tasks if the run has not ended."""
        ends = self.of("run_end")
        if ends and ends[-1].get("seconds") is not None:
            return float(ends[-1]["seconds"])
        parts = [
            float(e["seconds"]) for e in self.of("task_end") + self.of("evaluated") if e.get("seconds") is not None
        ]
        return sum(parts) if parts else None

    def square(self) -> Matrix:
        """Return the square part of the matrix over the tasks learned so far."""
        count = self.learned
        return [list(row[:count]) for row in self.matrix[:count]]

    @property
    def first(self) -> dict[str, Any]:
        """The event of the run's start, or an empty dict."""
        return next(iter(self.of("run_begin")), {})

    def kept_epoch(self, task: str) -> dict[str, Any]:
        """Return the event of the epoch whose state a task kept; empty if unknown."""
        best = self.by_task("task_end").get(task, {}).get("best_epoch")
        return next((e for e in reversed(self.of("epoch", task)) if e.get("epoch") == best), {})

    def adapters_used(self, task: str) -> str | None:
        """Return which adapters a task used: "all", the stack that has them, or their number; None if unknown."""
        end = self.by_task("task_end").get(task, {})
        layers = end.get("layers") or list(end.get("density") or {})
        if self.joint or not layers:
            return None
        unused = set(end.get("unused") or ())
        used = [layer for layer in layers if layer not in unused]
        if len(used) == len(layers):
            return "all"
        for side, other in (("encoder", "decoder"), ("decoder", "encoder")):
            if used == [layer for layer in layers if side in layer] and all(other in layer for layer in unused):
                return side
        return f"{len(used)} of {len(layers)}"

    @property
    def kept(self) -> str:
        """Description of what the method keeps for a task in addition to its head."""
        method = METHODS.get(self.method)
        if method is None:
            return "gates or weights"
        if method.gated:
            return "gates, 1 bit each"
        return KEPT.get(getattr(method(method.options_type()).layer_options(), "trained", ""), "own weights")
