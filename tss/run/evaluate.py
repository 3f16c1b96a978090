"""Predictions and metrics of one task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tss.adapters.frozen_prefix import reuse_states
from tss.run.examples import Split, by_length, collate
from tss.run.runtime import Runtime
from tss.tasks.base import IGNORED, Batch, TaskKind
from tss.tasks.headed import HeadedKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tss.adapters import TssModel


@dataclass(frozen=True)
class Evaluation:
    """Metrics (0 to 100) and, in the data's order, predictions and references."""

    metrics: dict[str, float]
    predictions: list[Any]
    references: list[Any]


def predict(
    model: TssModel,
    kind: TaskKind,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    runtime: Runtime,
) -> list[Any]:
    """Return predictions of the model's active task, in the split's order; batches are formed by length."""
    # decoding repeats a batch's calls for every token, so that only full batches are efficient
    cost = None if kind.kind == "generation" else runtime.batch_cost
    found = {}
    for rows in runtime.processes.batches(by_length(split, batch_size, cost)):
        with _running(model, kind, split, rows, tokenizer, runtime) as batch:
            answers = kind.predict(model, batch, tokenizer, examples=[split.examples[i] for i in rows])
        found.update(zip(rows, answers, strict=True))
    found = runtime.processes.together(found)
    return [found[row] for row in range(len(split))]


def evaluate(
    model: TssModel,
    kind: TaskKind,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    runtime: Runtime,
) -> Evaluation:
    """Evaluate the model's active task, in evaluation mode and the run's precision.

    Args:
        model: model in which the task is active.
        kind: kind of the task.
        split: examples to predict.
        tokenizer: tokenizer of the backbone.
        batch_size: rows per batch.
        runtime: device and precision.
    """
    return _scored(kind, split, predict(model, kind, split, tokenizer, batch_size=batch_size, runtime=runtime))


def evaluate_with_loss(
    model: TssModel,
    kind: TaskKind,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    runtime: Runtime,
) -> tuple[Evaluation, float]:
    """Return the results of `evaluate` and `mean_loss`, for a labelled task from the logits of a single pass."""
    if not isinstance(kind, HeadedKind):
        loss = mean_loss(model, kind, split, tokenizer, batch_size=batch_size, runtime=runtime)
        return evaluate(model, kind, split, tokenizer, batch_size=batch_size, runtime=runtime), loss
    found, losses = {}, {}
    for rows in runtime.processes.batches(by_length(split, batch_size, runtime.batch_cost)):
        with _running(model, kind, split, rows, tokenizer, runtime) as batch:
            output, labels = model(**batch), _labels(batch)
        losses[rows[0]] = output.loss.item() * labels, labels
        answers = kind.decode(output.logits, batch, [split.examples[i] for i in rows])
        found.update(zip(rows, answers, strict=True))
    found = runtime.processes.together(found)
    return _scored(kind, split, [found[row] for row in range(len(split))]), _mean(losses, runtime)


def mean_loss(
    model: TssModel,
    kind: TaskKind,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    runtime: Runtime,
) -> float:
    """Return the active task's loss on a split in evaluation mode: its mean over all labels, whatever the batches."""
    losses = {}
    for rows in runtime.processes.batches(by_length(split, batch_size, runtime.batch_cost)):
        with _running(model, kind, split, rows, tokenizer, runtime) as batch:
            loss, labels = model.tss.loss(**batch), _labels(batch)
        losses[rows[0]] = loss.item() * labels, labels
    return _mean(losses, runtime)


def _mean(losses: Mapping[int, tuple[float, int]], runtime: Runtime) -> float:
    """Return the mean loss over all labels, from (sum of losses, labels) by a batch's first row, added in row order."""
    sums = [value for _, value in sorted(runtime.processes.together(losses).items())]
    return sum(loss for loss, _ in sums) / max(1, sum(labels for _, labels in sums))


@contextmanager
def _running(
    model: TssModel,
    kind: TaskKind,
    split: Split,
    rows: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
) -> Iterator[Batch]:
    """Yield the batch of these rows; within the block, the model is in evaluation mode and reuses cached states."""
    model.eval()
    with torch.no_grad(), runtime.autocast():
        batch = collate(split, rows, kind, tokenizer, runtime)
        states = batch.pop("prefix_states", None)
        with reuse_states(None if states is None else model.tss.frozen_prefix, states):
            yield batch


def _scored(kind: TaskKind, split: Split, predictions: list[Any]) -> Evaluation:
    references = kind.references(split.examples)
    return Evaluation(kind.score(predictions, references), predictions, references)


def _labels(batch: Batch) -> int:
    """Return the number of labels of a batch that are not ignored."""
    return int((batch["labels"] != IGNORED).sum())
