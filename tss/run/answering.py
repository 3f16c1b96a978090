"""Joint prediction for rows of many tasks: which rows may share a batch, one pass per batch, and confidences."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tss.errors import StateError
from tss.run.examples import Split, by_length
from tss.run.runtime import Runtime
from tss.run.text_stream import TextStream
from tss.tasks import Generation, TaskKind
from tss.tasks.base import IGNORED, Batch, Encoded, Example, pad_inputs
from tss.tasks.headed import HeadedKind
from tss.tasks.heads import choose_stack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tss.adapters import TssModel


@dataclass(frozen=True)
class Row:
    """Encoded input of a task, ready for prediction.

    Attributes:
        task: name of the task.
        kind: kind of the task, with the requested decoding settings.
        example: the example as given.
        encoded: its tokens.
        size: maximum number of rows in a batch with this row.
        cut: whether the input is longer than what its task reads; False if this was not checked.
        on_text: called with the text so far, on the model's thread, whenever a greedy search has found more of it.
    """

    task: str
    kind: TaskKind
    example: Example
    encoded: Encoded
    size: int
    cut: bool = False
    on_text: Callable[[str], object] | None = None


@dataclass(frozen=True)
class Answer:
    """Prediction with details.

    Attributes:
        prediction: the prediction as decoded by the kind.
        details: "confidence" and "scores", if the kind has them; "truncated", True, if the input was cut.
    """

    prediction: Any
    details: Mapping[str, Any] = field(default_factory=dict)


def share_of(core: Any, kind: TaskKind, size: int) -> Hashable:
    """Return the key that rows of different tasks must share to run in one pass.

    The key is the stack that the head reads (for generation, all decoding settings) and the batch size. Input lengths
    may differ: each row is cut to the length of its own task.

    Args:
        core: the transformers model.
        kind: kind of the row's task.
        size: maximum number of rows in a batch with the row.
    """
    if isinstance(kind, HeadedKind):
        return "head", choose_stack(core, kind.stack(core)), size
    assert isinstance(kind, Generation)
    return dataclasses.replace(kind, metric="rouge1", prompt=""), size


def batches_of(core: Any, rows: Sequence[Row], runtime: Runtime) -> list[list[int]]:
    """Group the indices of rows into batches: only rows that may share one, and similar lengths together."""
    shares: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        shares.setdefault(share_of(core, row.kind, row.size), []).append(place)
    batches = []
    for places in shares.values():
        first = rows[places[0]]
        split = Split([rows[i].example for i in places], [rows[i].encoded for i in places])
        # decoding repeats a batch's calls for every token, so that only full batches are efficient
        cost = None if isinstance(first.kind, Generation) else runtime.batch_cost
        batches += [[places[i] for i in batch] for batch in by_length(split, first.size, cost)]
    return batches


@torch.no_grad()
def answer_batch(
    model: TssModel, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> list[Answer]:
    """Predict rows with the same `share_of` key, in one pass of the model or one search; answers are in row order.

    Raises:
        ValueError: raised by the kinds, for example for a prompt that leaves no position for an answer.
    """
    model.eval()
    names = [row.task for row in rows]
    pad_id: Any = tokenizer.pad_token_id
    batch = runtime.to_device(pad_inputs([row.encoded for row in rows], pad_id, runtime.pad_multiple))
    # if all rows have the same task, no task per row is needed
    with model.tss.using(names[0] if len(set(names)) == 1 else names), runtime.autocast():
        if isinstance(kind := rows[0].kind, Generation):
            listeners = [row.on_text for row in rows]
            streamer = TextStream(tokenizer, listeners) if any(listeners) and kind.num_beams == 1 else None
            return [Answer(text) for text in kind.predict(model, batch, tokenizer, streamer=streamer)]
        logits = model(**batch).logits
    answers: list[Any] = [None] * len(rows)
    for task in dict.fromkeys(names):
        places = [i for i, name in enumerate(names) if name == task]
        chosen = torch.stack([logits[i] for i in places])
        for place, answer in zip(places, _read(chosen, [rows[i] for i in places]), strict=True):
            answers[place] = answer
    return answers


def _read(logits: torch.Tensor, rows: Sequence[Row]) -> list[Answer]:
    """Decode the logits of rows of one task."""
    kind, examples = rows[0].kind, [row.example for row in rows]
    assert isinstance(kind, HeadedKind)
    batch: Batch = {}
    if logits.dim() == 3:  # one row of logits per token; the labels mark the tokens to read
        labels = torch.full(logits.shape[:2], IGNORED)
        for to, row in zip(labels, rows, strict=True):
            to[: len(row.encoded["labels"])] = torch.tensor(row.encoded["labels"])
        batch["labels"] = labels
    found, details = kind.decode(logits, batch, examples), kind.confidence(logits, batch, examples)
    return [Answer(*both) for both in zip(found, details, strict=True)]


CANNOT = (ValueError, IndexError, RuntimeError, MemoryError, StateError)
"""Exceptions for an input that the model or its tokenizer cannot answer, or a task that cannot be read."""


def answer_each(
    model: TssModel, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> list[Answer | Exception]:
    """Return the answer to each row, in order, or the exception; a row that fails does not affect other rows."""
    answers: list[Any] = [None] * len(rows)

    def answer(places: Sequence[int]) -> None:
        chosen = [rows[i] for i in places]
        for place, row, found in zip(places, chosen, answer_batch(model, chosen, tokenizer, runtime), strict=True):
            cut = {"truncated": True} if row.cut else {}
            answers[place] = dataclasses.replace(found, details={**found.details, **cut})

    for places in batches_of(model.core, rows, runtime):
        with contextlib.suppress(*CANNOT):
            answer(places)
            continue
        for place in places:
            try:
                answer([place])
            except CANNOT as error:
                answers[place] = error
    return answers
