"""Preparation of a task's data for the model: kinds with the run's settings, encoded splits, batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from tss.errors import ConfigError
from tss.run.config import TaskSettings
from tss.run.runtime import Runtime
from tss.tasks.base import IGNORED, Batch, Encoded, Example, TaskKind, pad_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tss.adapters import TssHandle

MOST_PREFIX_BYTES = 2**28
"""Maximum bytes of hidden states cached for a split."""


def with_settings(kind: TaskKind, settings: TaskSettings, task: str) -> TaskKind:
    """Return the task's kind with the run's metric, features and decoding instead of its own defaults.

    Raises:
        ConfigError: the kind has no such setting or refuses the value.
    """
    changes: dict[str, Any] = {"metric": settings.metric, "features": settings.features, "head": settings.head}
    if kind.kind == "generation":
        changes |= settings.generation.model_dump()
    changes = {key: value for key, value in changes.items() if value is not None}
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(changes.keys() - known):
        raise ConfigError(
            f"task {task}: a {kind.kind} task has no setting {', '.join(unknown)}; set it under `families` or "
            "`overrides` for the tasks that have it"
        )
    try:
        return dataclasses.replace(kind, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise ConfigError(f"task {task}: {error}") from error


@dataclass(frozen=True)
class Split:
    """Examples and their encoded form, in the data's order."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    prefix_states: torch.Tensor | None = None
    """Hidden states before the first adapter, (tokens of all examples + 1, H), the last row zero; None: not cached."""

    def __len__(self) -> int:
        return len(self.examples)

    def lengths(self) -> list[int]:
        """Return the number of tokens of each source."""
        return [len(row["input_ids"]) for row in self.encoded]

    @cached_property
    def starts(self) -> list[int]:
        """Number of tokens of all sources before each source."""
        return list(itertools.accumulate(self.lengths(), initial=0))


def encode_split(
    examples: Sequence[Example], kind: TaskKind, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings
) -> Split:
    """Encode all examples of a split at once."""
    lengths = {"source_length": settings.source_length, "target_length": settings.target_length}
    return Split(examples, kind.encode_all(examples, tokenizer, **lengths) if examples else [])


def label_counts(split: Split, rows: Sequence[int]) -> list[int]:
    """Return how many labels of each row count in a loss: 1 for a class, or the token labels that are not ignored."""
    labels = (split.encoded[i]["labels"] for i in rows)
    return [1 if isinstance(one, int) else sum(label != IGNORED for label in one) for one in labels]


def collate(
    split: Split, rows: Sequence[int], kind: TaskKind, tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> Batch:
    """Return a batch of the rows on the device, padded to the device's multiple."""
    pad_id: Any = tokenizer.pad_token_id
    encoded = [split.encoded[i] for i in rows]
    batch = kind.collate(encoded, pad_id=pad_id, multiple=runtime.pad_multiple)
    if split.prefix_states is not None:
        index = [range(split.starts[i], split.starts[i] + len(split.encoded[i]["input_ids"])) for i in rows]
        places = pad_rows(index, len(split.prefix_states) - 1, runtime.pad_multiple)
        batch["prefix_states"] = split.prefix_states[places.to(split.prefix_states.device)]
    return runtime.to_device(batch)


def cache_prefix(
    split: Split,
    kind: TaskKind,
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    handle: TssHandle,
    size: int,
    most: int = MOST_PREFIX_BYTES,
) -> Split:
    """Return the split with its hidden states before the first adapter, if all before it is frozen without dropout.

    Batches of the split then begin at the first adapter. Their states depend on the split alone, so that a resumed run
    computes the same bits.

    Args:
        split: a split that is read more than once.
        kind, tokenizer, runtime, handle: used for its batches.
        size: rows per batch.
        most: maximum number of bytes of hidden states to cache.
    """
    width = getattr(handle.model.config, "hidden_size", None) or getattr(handle.model.config, "d_model", 0)
    tokens = sum(split.lengths())
    if runtime.processes.in_step:  # a part of a sharded backbone, run alone, does not gather its layers
        return split
    if handle.frozen_prefix is None or not 0 < tokens * width * handle.model.dtype.itemsize <= most:
        return split
    states_of_all = None
    with torch.no_grad(), runtime.autocast():
        for rows in by_length(split, size, runtime.batch_cost):
            hidden = handle.frozen_prefix.compute(collate(split, rows, kind, tokenizer, runtime))
            if hidden is None:
                return split
            if states_of_all is None:
                states_of_all = hidden.new_zeros(tokens + 1, hidden.shape[-1])
            for i, states in zip(rows, hidden, strict=True):
                count = len(split.encoded[i]["input_ids"])
                states_of_all[split.starts[i] : split.starts[i] + count] = states[:count]
    return dataclasses.replace(split, prefix_states=states_of_all)


def by_length(split: Split, batch_size: int, batch_cost: int | None = None) -> list[list[int]]:
    """Group rows of similar length into batches, longest first, so that running out of memory happens at once.

    Args:
        split: the rows.
        batch_size: rows per batch; the maximum if `batch_cost` is given.
        batch_cost: fixed cost of a batch, as the number of tokens that take as long; batches are then split where
            padding would cost more. None: full batches.
    """
    lengths = split.lengths()
    order = sorted(range(len(split)), key=lambda i: (-lengths[i], i))
    if batch_cost is None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    edges = cheapest_cuts([lengths[i] for i in order], batch_size, batch_cost)
    return [order[start:end] for start, end in itertools.pairwise(edges)]


def cheapest_cuts(lengths: Sequence[int], most: int, batch_cost: int) -> list[int]:
    """Return the edges 0, ..., len(lengths) of the consecutive batches that are cheapest with padding.

    A batch costs its number of rows times its longest row, plus `batch_cost`.

    Args:
        lengths: lengths of the rows, descending.
        most: maximum number of rows per batch, at least 1.
        batch_cost: fixed cost of a batch, in tokens.
    """
    best, begins = [0], [0]  # for the rows before each edge: the least cost, and where its last batch begins
    for end in range(1, len(lengths) + 1):
        starts = range(max(0, end - most), end)
        cost, start = min((best[i] + (end - i) * lengths[i] + batch_cost, i) for i in starts)
        best.append(cost)
        begins.append(start)
    edges = [len(lengths)]
    while edges[-1] > 0:
        edges.append(begins[edges[-1]])
    return edges[::-1]
