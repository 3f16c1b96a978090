"""Warnings about settings and data under which a task cannot learn, or its scores mean little."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tss import tasks
from tss.run.config import Generation, TaskSettings

FEW_EXAMPLES = 50
FEW_FLIPS = 0.01
MANY_REPEATS = 0.1
"""Fraction of targets that may repeat an n-gram that answers may not: more, and the metric suffers."""


def before_training(
    settings: TaskSettings,
    kind: str,
    *,
    validation: int,
    sources: Sequence[int],
    targets: Sequence[Sequence[int]] = (),
    longest: int | None = None,
) -> list[str]:
    """Return warnings about a task's settings, given its data.

    Args:
        settings: settings of the task.
        kind: classification, extraction or generation.
        validation: number of validation examples.
        sources: number of tokens kept of each training source.
        targets: token ids kept of each training target; empty for labelled tasks.
        longest: maximum number of tokens that the backbone reads; None: no limit.
    """
    found = []
    if validation < FEW_EXAMPLES:
        found.append(
            f"the best epoch is chosen on only {validation} validation examples: with fewer than {FEW_EXAMPLES}, the "
            "choice is mostly chance"
        )
    length = settings.source_length
    cut = sum(tokens >= length for tokens in sources)
    if cut > len(sources) / 2 and (longest is None or longest > length):
        limit = f", up to {longest}" if longest else ""
        found.append(f"source_length={length} cuts {cut} of {len(sources)} training sources: raise it{limit}")
    if kind == "generation" and targets:
        found += _decoding(settings.generation, targets)
    return found


def _decoding(generation: Generation, targets: Sequence[Sequence[int]]) -> list[str]:
    """Return warnings about targets that cannot be generated with these settings."""
    found, lengths = [], [len(ids) for ids in targets]
    least, size = (
        getattr(tasks.Generation, key) if getattr(generation, key) is None else getattr(generation, key)
        for key in ("min_new_tokens", "no_repeat_ngram_size")
    )
    shorter = sum(tokens < least for tokens in lengths)
    if shorter > len(targets) / 2:
        found.append(
            f"generation.min_new_tokens={least}, but {shorter} of {len(targets)} training targets are shorter "
            f"(median {statistics.median(lengths):g} tokens): the metric suffers; lower it, or leave it out"
        )
    repeating = sum(_repeats(ids, size) for ids in targets) if size else 0
    if repeating > len(targets) * MANY_REPEATS:
        found.append(
            f"generation.no_repeat_ngram_size={size}, but {repeating} of {len(targets)} training targets repeat "
            f"{size} tokens and cannot be generated: the metric suffers; raise it, or use 0"
        )
    return found


def _repeats(ids: Sequence[int], size: int) -> bool:
    """Return whether an n-gram of this size occurs twice."""
    grams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
    return len(set(grams)) < len(grams)


def after_training(settings: TaskSettings, *, metric: str, best: float, flipped: Mapping[str, float]) -> list[str]:
    """Return warnings about a task's settings, given the course of its training.

    Args:
        settings: settings of the task.
        metric: name of the validation metric, or "loss".
        best: its value after the best epoch.
        flipped: fraction of the gates that changed since the task began, for each layer that the task uses; empty
            without gates.
    """
    found = []
    if metric != "loss" and best == 0:
        found.append(
            f"validation {metric} was 0 after every epoch: the task was not learned; train longer, or raise head_lr "
            f"({settings.head_lr:g}) or lower score_lr ({settings.score_lr:g})"
        )
    if flipped and (share := sum(flipped.values()) / len(flipped)) < FEW_FLIPS:
        found.append(
            f"only {share:.2%} of the gates flipped, so that the adapters hardly learned: raise score_lr "
            f"({settings.score_lr:g}), or train longer"
        )
    return found
