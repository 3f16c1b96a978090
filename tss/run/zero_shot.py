"""Metrics of a task before it is trained: untrained, and right before its turn; both give forward transfer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tss.data import TaskData
from tss.methods import Method
from tss.run.backbone import Backbone, attach_adapters
from tss.run.config import RunConfig, TaskSettings
from tss.run.evaluate import evaluate
from tss.run.examples import encode_split
from tss.run.runtime import Runtime, memory_errors

if TYPE_CHECKING:
    from tss.adapters import TssHandle


def untrained_metrics(
    config: RunConfig,
    settings: Mapping[str, TaskSettings],
    tasks: Iterable[TaskData],
    backbone: Backbone,
    method: Method,
    runtime: Runtime,
) -> dict[str, dict[str, float]]:
    """Return task -> metrics as the first task of a sequence, before its first step; the backbone is unchanged."""
    metrics = {}
    for task in tasks:
        handle = attach_adapters(config, backbone, method)
        try:
            method.begin_task(handle, task.name, task.kind)
            metrics[task.name] = metrics_now(handle, task, settings[task.name], backbone, runtime)
        finally:
            handle.detach()
    return metrics


def metrics_now(
    handle: TssHandle, task: TaskData, settings: TaskSettings, backbone: Backbone, runtime: Runtime
) -> dict[str, float]:
    """Return test-split metrics of the task that was just started, with the gates and head that it starts from."""
    split = encode_split(task.test, task.kind, backbone.tokenizer, settings)
    size = settings.eval_batch_size
    with handle.using(task.name), memory_errors(task.name, size):
        result = evaluate(handle.model, task.kind, split, backbone.tokenizer, batch_size=size, runtime=runtime)
    return result.metrics
