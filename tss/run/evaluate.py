"""Predictions and metrics of one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tss.adapters.frozen_prefix import reuse_states
from tss.run.examples import Split, by_length, collate
from tss.run.runtime import Runtime
from tss.tasks.base import IGNORED, TaskKind

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
    model.eval()
    predictions: list[Any] = [None] * len(split)
    with torch.no_grad(), runtime.autocast():
        # decoding repeats a batch's calls for every token, so that only full batches pay
        cost = None if kind.kind == "generation" else runtime.batch_cost
        for rows in by_length(split, batch_size, cost):
            batch = collate(split, rows, kind, tokenizer, runtime)
            prefix_states = batch.pop("prefix_states", None)
            with reuse_states(None if prefix_states is None else model.tss.frozen_prefix, prefix_states):
                answers = kind.predict(model, batch, tokenizer, examples=[split.examples[i] for i in rows])
            for row, answer in zip(rows, answers, strict=True):
                predictions[row] = answer
    return predictions


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
    predictions = predict(model, kind, split, tokenizer, batch_size=batch_size, runtime=runtime)
    references = kind.references(split.examples)
    return Evaluation(kind.score(predictions, references), predictions, references)


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
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), runtime.autocast():
        for rows in by_length(split, batch_size, runtime.batch_cost):
            batch = collate(split, rows, kind, tokenizer, runtime)
            labels = int((batch["labels"] != IGNORED).sum())
            total += model.tss.loss(**batch).item() * labels
            count += labels
    return total / max(1, count)
