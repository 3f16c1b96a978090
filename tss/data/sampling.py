"""Seeded choices among examples: subsamples, and a validation split where the data has none."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

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


def by_label(sentences: Sequence[Example], limit: int, *, seed: int, task: str) -> list[Example]:
    """Tagged sentences, in their old order, until each tag is in `limit` of them or in all that have it.

    A sentence is kept if it holds a tag that is still short of `limit`, and counts for all of its tags; none is kept
    twice, nor another with the same words and tags.
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
    """So many different examples of each class for each of several splits, in random order.

    Args:
        labels: the class of each row.
        make: the example of a row; None passes the row over.
        counts: examples of each class, by split.
        seed, task: of the draw.

    Raises:
        ValueError: a class has too few.
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
            raise ValueError(f"class {label!r} has {len(drawn)} different examples, {sum(counts.values())} are drawn")
    for examples in splits.values():
        rng.shuffle(examples)
    return splits
