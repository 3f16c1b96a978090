"""Warnings about settings and data under which a task cannot learn, or its scores mean little."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tss.run.config import TaskSettings

FEW_EXAMPLES = 50
FEW_FLIPS = 0.01


def before_training(
    settings: TaskSettings,
    kind: str,
    *,
    validation: int,
    sources: Sequence[int],
    targets: Sequence[int] = (),
    longest: int | None = None,
) -> list[str]:
    """Return warnings about a task's settings, given its data.

    Args:
        settings: settings of the task.
        kind: classification, extraction or generation.
        validation: number of validation examples.
        sources: number of tokens kept of each training source.
        targets: number of tokens kept of each training target; empty for labelled tasks.
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
    least = settings.generation.min_new_tokens
    if kind == "generation" and least and targets:
        shorter = sum(tokens < least for tokens in targets)
        if shorter > len(targets) / 2:
            found.append(
                f"generation.min_new_tokens={least}, but {shorter} of {len(targets)} training targets are shorter "
                f"(median {statistics.median(targets):g} tokens): the metric suffers; lower it, or leave it out"
            )
    return found


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
