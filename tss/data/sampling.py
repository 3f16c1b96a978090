"""Seeded choices among examples: subsamples, and a validation split where the data has none."""

from __future__ import annotations

from collections.abc import Sequence

from tss.data.schema import Example
from tss.seeding import stream

HELD_OUT = 10  # one training example in ten becomes validation


def subsample(examples: Sequence[Example], limit: int, *, seed: int, task: str, split: str) -> list[Example]:
    """At most `limit` examples, in their old order; classification draws from the classes in turn.

    So classes are as even as the data allows, and every class is there if `limit` has room for it.
    """
    if limit >= len(examples):
        return list(examples)
    rng = stream("subsample", seed, task, split)
    order = list(range(len(examples)))
    rng.shuffle(order)
    queues: dict[str | None, list[int]] = {}
    for index in order:
        queues.setdefault(examples[index].get("label"), []).append(index)
    # The k-th example of every class comes before any class's k+1-th; the shuffle decides among classes.
    rank = {index: k for queue in queues.values() for k, index in enumerate(queue)}
    chosen = sorted(order, key=rank.__getitem__)[:limit]
    return [examples[index] for index in sorted(chosen)]


def hold_out(labels: Sequence[str | None], *, seed: int, task: str) -> list[int]:
    """Indices of a tenth of the examples, at least one, with classes in proportion; training keeps one of each class.

    Args:
        labels: the class of each example; all None where there are no classes.
        seed: of the run.
        task: name of the task; another task's split does not depend on it.
    """
    order = list(range(len(labels)))
    stream("validation", seed, task).shuffle(order)
    first = {labels[index]: index for index in reversed(order)}  # each class's first in the shuffled order stays
    rank = {label: k for k, label in enumerate(dict.fromkeys(labels[index] for index in order))}
    candidates = sorted((i for i in order if first[labels[i]] != i), key=lambda i: rank[labels[i]])
    count = min(max(1, round(len(labels) / HELD_OUT)), len(candidates))
    # Evenly spaced in an order grouped by class: each class gives in proportion to its size.
    return sorted(candidates[(2 * k + 1) * len(candidates) // (2 * count)] for k in range(count))
