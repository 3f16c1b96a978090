"""Rows of many tasks answered together: which of them may share a batch, one pass for each, and how sure it is."""

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
    """An input of a task, ready to be answered.

    Attributes:
        task: that answers.
        kind: of the task, with the decoding that is asked for.
        example: what was given.
        encoded: its tokens.
        size: rows that a batch with it may have.
        cut: whether the input is longer than what its task reads, as far as somebody asked.
        on_text: is told the text so far, on the thread of the model, whenever a greedy search has found more of it.
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
    """A prediction, and what is told beside it.

    Attributes:
        prediction: as the kind decodes it.
        details: "confidence" and "scores", where the kind has them; "truncated", true, of an input that was cut.
    """

    prediction: Any
    details: Mapping[str, Any] = field(default_factory=dict)


def share_of(core: Any, kind: TaskKind, size: int) -> Hashable:
    """What rows of different tasks must have in common to be answered by one pass.

    That is the stack that their heads read, or all settings of decoding, and the size of a batch. Lengths of inputs
    differ as they like: each row is cut as its own task says.

    Args:
        core: the transformers model.
        kind: of a row's task.
        size: rows that a batch with it may have.
    """
    if isinstance(kind, HeadedKind):
        return "head", choose_stack(core, kind.stack(core)), size
    assert isinstance(kind, Generation)
    return dataclasses.replace(kind, metric="rouge1", prompt=""), size


def batches_of(core: Any, rows: Sequence[Row], runtime: Runtime) -> list[list[int]]:
    """Places of rows in batches: those that may share one, of like lengths together."""
    shares: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        shares.setdefault(share_of(core, row.kind, row.size), []).append(place)
    batches = []
    for places in shares.values():
        first = rows[places[0]]
        split = Split([rows[i].example for i in places], [rows[i].encoded for i in places])
        # decoding repeats a batch's calls for every token, so that only full batches pay
        cost = None if isinstance(first.kind, Generation) else runtime.batch_cost
        batches += [[places[i] for i in batch] for batch in by_length(split, first.size, cost)]
    return batches


@torch.no_grad()
def answer_batch(
    model: TssModel, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> list[Answer]:
    """Answers to rows of one share, in their order, by one pass of the model or one search.

    Raises:
        ValueError: as the kinds do, for example a prompt that leaves no position for an answer.
    """
    model.eval()
    names = [row.task for row in rows]
    pad_id: Any = tokenizer.pad_token_id
    batch = runtime.to_device(pad_inputs([row.encoded for row in rows], pad_id, runtime.pad_multiple))
    # one task for all rows needs no choice by row
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
    """What the logits of rows of one task say."""
    kind, examples = rows[0].kind, [row.example for row in rows]
    assert isinstance(kind, HeadedKind)
    batch: Batch = {}
    if logits.dim() == 3:  # one row of logits per token, of which the labels mark those to be read
        labels = torch.full(logits.shape[:2], IGNORED)
        for to, row in zip(labels, rows, strict=True):
            to[: len(row.encoded["labels"])] = torch.tensor(row.encoded["labels"])
        batch["labels"] = labels
    found, details = kind.decode(logits, batch, examples), kind.confidence(logits, batch, examples)
    return [Answer(*both) for both in zip(found, details, strict=True)]


CANNOT = (ValueError, IndexError, RuntimeError, MemoryError, StateError)
"""What is raised for an input that the model or its tokenizer cannot answer, or a task that cannot be read."""


def answer_each(
    model: TssModel, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> list[Answer | Exception]:
    """An answer to each row, in their order, or why there is none; a row that fails takes no other with it."""
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
