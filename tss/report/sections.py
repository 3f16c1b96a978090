"""Sections of a report, each generated from the runs only; a section without content is omitted."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import yaml

from tss.methods import METHODS, Method
from tss.report import bars, curves, heatmaps, html, tables
from tss.report.header import Summary
from tss.report.names import FAMILIES
from tss.report.overlap import gate_overlap
from tss.report.part import Part
from tss.report.run import Run

MEANINGS = [
    ("average", "mean over tasks of their scores after the last one was learned"),
    ("learning", "mean over tasks of their scores just after each was learned"),
    ("forgetting", "points that tasks lost between the two, mean over all but the last"),
]
GATE_CAPTIONS = {
    "density": "Share of open gates in each adapter matrix after each task. With threshold 0 the first task starts at "
    "half.",
    "flipped": "Share of gates that a task changed from where it started. Near zero means that the scores hardly "
    "moved: raise the score learning rate or train longer.",
    "free": "Mean of 1 − importance in each adapter matrix after each task: the share of a gradient or step that the "
    "soft mask leaves to the next task, as a mean over the matrix's gates. At 0 % nothing could change.",
    "moved": "How far the scores of each adapter matrix moved while a task was trained: the mean over its gates of the "
    "absolute change from the task's first step to the state that was kept.",
}
GATE_UNITS = {
    "density": "gates open, %",
    "flipped": "gates flipped, %",
    "free": "1 − importance, %",
    "moved": "mean change of scores",
}
NOT_RUN = (
    " Blank: layers that the task does not run, such as a decoder's adapters where the head reads the encoder; their "
    "gates have nothing to learn."
)


def assemble(runs: Sequence[Run], summaries: Sequence[Summary], alone: dict[str, float]) -> list[Part]:
    """Return all sections that have content."""
    parts = [
        _comparison(runs, summaries, alone),
        matrices(runs),
        examples(runs),
        learning_curves(runs),
        _gates(runs),
        _cost(runs),
        _settings(runs),
        names(runs),
    ]
    return [part for part in parts if part.parts]


def _comparison(runs: Sequence[Run], summaries: Sequence[Summary], alone: dict[str, float]) -> Part:
    part = Part("Runs side by side" if len(runs) > 1 else "Results")
    part.tabulate(tables.metrics_table(runs, summaries, "metrics"), colours=len(runs) > 1)
    part.tabulate(tables.seeds_table(runs, summaries, "seeds"))
    if alone:
        missing = [t for t in runs[0].tasks[1 : runs[0].learned] if t not in alone]
        if missing:
            part.say(f"Transfer needs every task learned alone; missing: {', '.join(missing)}.", "caption")
    if len(runs) > 1:
        part.draw(bars.forgetting_picture(runs, "forgetting"), least=720)
    if any(run.learned for run in runs):
        part.tabulate(tables.families_table(runs, "families"))
    return part


def matrices(runs: Sequence[Run]) -> Part:
    """Return the section of each run's matrix and of how its tasks were learned."""
    part = Part("Matrix")
    for index, run in enumerate(runs):
        if not run.tasks:
            continue
        if len(runs) > 1:
            part.head(run.label if run.label == run.method else f"{run.label} ({run.method})")
        name = _named("matrix", runs, index)
        if run.learned:
            part.draw(heatmaps.matrix_picture(run, name), least=560 if len(run.tasks) <= 12 else 960)
        else:
            part.say("Nothing is measured yet.")
        part.tabulate(tables.matrix_table(run, name), show=False)
        part.tabulate(tables.tasks_table(run, _named("tasks", runs, index)))
    return part


def examples(runs: Sequence[Run]) -> Part:
    """Return the section of each run's first predictions, next to the correct answers."""
    part = Part("Example predictions")
    for index, run in enumerate(runs):
        table = tables.examples_table(run, _named("examples", runs, index))
        if table.rows:
            part.fold(f"{run.label}: {len(table.rows)} answers", table)
    return part


def names(runs: Sequence[Run]) -> Part:
    """Return the section that explains the short names of methods, families and metrics."""
    part = Part("What the names mean")
    methods = [name for name in dict.fromkeys(run.method for run in runs) if name in METHODS]
    families = [
        name for name in dict.fromkeys(t.split("/", 1)[0] for run in runs for t in run.tasks) if name in FAMILIES
    ]
    pairs = [(name, _about(METHODS[name])) for name in methods] + [(name, FAMILIES[name]) for name in families]
    if pairs:
        part.list_facts([*pairs, *MEANINGS])
    return part


def _about(method: type[Method]) -> str:
    """Return the first docstring line of a method's module, without the method's name."""
    line = (inspect.getdoc(inspect.getmodule(method)) or "").split("\n", 1)[0]
    return line.partition(": ")[2] or line


def learning_curves(runs: Sequence[Run]) -> Part:
    """Return the section of validation by epoch, and of each run's training loss."""
    part = Part("Learning curves")
    part.draw(curves.learning_picture(runs, "learning"), least=700)
    for index, run in enumerate(runs):
        picture = curves.loss_picture(run, _named("loss", runs, index))
        if picture is not None and len(runs) > 1:
            part.head(run.label)
        part.draw(picture, least=640)
    return part


def _gates(runs: Sequence[Run]) -> Part:
    part = Part("Gates")
    for index, run in enumerate(runs):
        ends = run.by_task("task_end")
        if not run.gates and not any(end.get("density") for end in ends.values()):
            continue
        if len(runs) > 1:
            part.head(run.label)
        pictures = []
        for key, caption in GATE_CAPTIONS.items():
            values = {task: _of_layers(end, key) for task, end in ends.items()}
            if any(end.get("unused") for end in ends.values()):
                caption += NOT_RUN
            name, what = _named(key, runs, index), GATE_UNITS[key]
            scale, digits = (100, 1) if what.endswith("%") else (1, 3)
            pictures.append(
                heatmaps.layers_picture(values, name, what=what, scale=scale, digits=digits, caption=caption)
            )
            part.tabulate(tables.layers_table(values, name), show=False)
        part.draw_beside(pictures, least=560)
        pictures, overlap = [curves.capacity_picture(run, _named("capacity", runs, index))], gate_overlap(run.gates)
        if overlap is not None:
            name = _named("overlap", runs, index)
            pictures.insert(0, heatmaps.overlap_picture(overlap, name))
            part.tabulate(tables.overlap_table(overlap, name), show=False)
        part.draw_beside(pictures, least=420)
    return part


def _of_layers(end: dict[str, Any], key: str) -> dict[str, float]:
    """Return layer -> a value of `GATE_CAPTIONS`, for the layers that the task runs."""
    if key == "free":
        return {layer: 1 - value for layer, value in tables.of_layers_run(end, "importance_mean").items()}
    return tables.of_layers_run(end, key)


def _cost(runs: Sequence[Run]) -> Part:
    part = Part("Time, memory and bytes kept")
    for index, run in enumerate(runs):
        table = tables.cost_table(run, _named("cost", runs, index))
        if table is None:
            continue
        if len(runs) > 1:
            part.head(run.label)
        part.tabulate(table)
        part.draw(bars.bytes_picture(run, _named("bytes", runs, index)), least=560)
    return part


def _settings(runs: Sequence[Run]) -> Part:
    part = Part("Configuration and environment")
    for run in runs:
        if len(runs) > 1:
            part.head(run.label)
        part.list_facts([("Run folder", str(run.folder)), ("Soft mask", run.soft_mask), *_signatures(run)])
        if run.config:
            part.parts.append(
                html.folded("Configuration", yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
            )
        if run.env:
            part.parts.append(html.folded("Environment", yaml.safe_dump(run.env, sort_keys=False, allow_unicode=True)))
    return part


def _signatures(run: Run) -> list[tuple[str, str]]:
    """Return the metrics with their number of tasks, and the libraries and settings that computed them."""
    by_metric: dict[str, list[str]] = {}
    for task, metric in run.main.items():
        if metric:
            by_metric.setdefault(metric, []).append(task)
    pairs = [(f"Metric {metric}", f"{len(names)} of {len(run.tasks)} tasks") for metric, names in by_metric.items()]
    return pairs + [(f"Computed by ({kind})", line) for kind, line in run.signatures.items()]


def _named(kind: str, runs: Sequence[Run], index: int) -> str:
    """Return the name of a picture or table, numbered if several runs are shown."""
    return kind if len(runs) == 1 else f"{kind}-{index + 1}"
