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
    """Answers of the task that is active in the model, in the split's order; batches are formed by length."""
    # decoding repeats a batch's calls for every token, so that only full batches pay
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
    """Score the task that is active in the model, in evaluation mode and the run's precision.

    Args:
        model: with the task active.
        kind: of the task.
        split: what is predicted.
        tokenizer: of the backbone.
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
    """What `evaluate` and `mean_loss` give, of a labelled task by one pass: its logits tell both."""
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
    """The loss of the active task on a split, in evaluation mode: its mean over all labels, however batches are cut."""
    losses = {}
    for rows in runtime.processes.batches(by_length(split, batch_size, runtime.batch_cost)):
        with _running(model, kind, split, rows, tokenizer, runtime) as batch:
            loss, labels = model.tss.loss(**batch), _labels(batch)
        losses[rows[0]] = loss.item() * labels, labels
    return _mean(losses, runtime)


def _mean(losses: Mapping[int, tuple[float, int]], runtime: Runtime) -> float:
    """The mean over all labels of (sum of losses, labels) by a batch's first row, added up in the order of rows."""
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
    """The batch of these rows, which the model then runs in evaluation mode and from the states that are kept."""
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
    """How many labels of a batch count."""
    return int((batch["labels"] != IGNORED).sum())
