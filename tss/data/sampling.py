"""Seeded sampling of examples: subsamples, and a validation split for data without one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from tss.data.schema import Example
from tss.seeding import stream

HELD_OUT = 10  # one training example in ten becomes validation


def subsample(examples: Sequence[Example], limit: int, *, seed: int, task: str, split: str) -> list[Example]:
    """Return at most `limit` examples, in their original order; classification draws from the classes in turn.

    Classes are therefore as balanced as the data allows, and all classes occur if `limit` is at least their number.
    """
    if limit >= len(examples):
        return list(examples)
    rng = stream("subsample", seed, task, split)
    order = list(range(len(examples)))
    rng.shuffle(order)
    queues: dict[str | None, list[int]] = {}
    for index in order:
        queues.setdefault(examples[index].get("label"), []).append(index)
    # The k-th example of every class ranks before the (k+1)-th of any; the shuffle orders examples of equal rank.
    rank = {index: k for queue in queues.values() for k, index in enumerate(queue)}
    chosen = sorted(order, key=rank.__getitem__)[:limit]
    return [examples[index] for index in sorted(chosen)]


def hold_out(labels: Sequence[str | None], *, seed: int, task: str) -> list[int]:
    """Return the indices of a tenth of the examples, stratified by class; training keeps one of each class.

    At least one example is held out if training can spare it.

    Args:
        labels: the class of each example; all None for kinds of tasks without classes.
        seed: seed of the run.
        task: name of the task; splits of other tasks do not depend on it.
    """
    order = list(range(len(labels)))
    stream("validation", seed, task).shuffle(order)
    first = {labels[index]: index for index in reversed(order)}  # the shuffle's first of each class stays in training
    rank = {label: k for k, label in enumerate(dict.fromkeys(labels[index] for index in order))}
    candidates = sorted((i for i in order if first[labels[i]] != i), key=lambda i: rank[labels[i]])
    count = min(max(1, round(len(labels) / HELD_OUT)), len(candidates))
    # Evenly spaced in an order grouped by class: the number per class is proportional to its size.
    return sorted(candidates[(2 * k + 1) * len(candidates) // (2 * count)] for k in range(count))


def by_label(sentences: Sequence[Example], limit: int, *, seed: int, task: str) -> list[Example]:
    """Draw tagged sentences until each tag is in `limit` of them or in all that have it; keep the original order.

    A sentence is kept if it has a tag that occurs in fewer than `limit` kept sentences, and counts for all its tags.
    Of sentences with the same words and tags only one is kept.
    """
    order = list(range(len(sentences)))
    stream("by label", seed, task).shuffle(order)
    counts: Counter[str] = Counter()
    kept: dict[tuple[str, ...], int] = {}
    for index in order:
        sentence = sentences[index]
        tags, key = set(sentence["ner_tags"]), (*sentence["tokens"], "", *sentence["ner_tags"])
        if key not in kept and any(counts[tag] < limit for tag in tags):
            kept[key] = index
            counts.update(tags)
    return [sentences[index] for index in sorted(kept.values())]


def by_class(
    labels: Iterable[Hashable],
    make: Callable[[int], Example | None],
    counts: Mapping[str, int],
    *,
    seed: int,
    task: str,
) -> dict[str, list[Example]]:
    """Draw the given number of distinct examples of each class for each split, in random order.

    Args:
        labels: the class of each row.
        make: row index -> example; None skips the row.
        counts: split -> examples of each class.
        seed, task: determine the draw.

    Raises:
        ValueError: a class has too few distinct examples.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    rng = stream("by class", seed, task, *counts)
    splits: dict[str, list[Example]] = {split: [] for split in counts}
    for label in sorted(groups, key=str):
        rng.shuffle(groups[label])
        drawn: dict[str, Example] = {}
        for index in groups[label]:
            if len(drawn) == sum(counts.values()):
                break
            if (example := make(index)) is not None:
                drawn.setdefault(repr(sorted(example.items())), example)
        examples = iter(drawn.values())
        for split, count in counts.items():
            splits[split] += itertools.islice(examples, count)
        if len(drawn) < sum(counts.values()):
            raise ValueError(f"class {label!r} has {len(drawn)} different examples, {sum(counts.values())} are needed")
    for examples in splits.values():
        rng.shuffle(examples)
    return splits
