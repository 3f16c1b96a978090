"""Small tasks that the project makes itself, one or two of each family; a task is a pure function of (name, seed).

Each hides its answer from a bag of words: the sentiment belongs to one of two aspects, test topics use words that
training never showed, an entity's type follows from its context and not from its made-up name, a summary keeps one
decision out of a conversation, and a reply puts an act's values into words.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from tss.data.generated import aspects, dialogue, entities, plans, topics

Example = dict[str, object]
Maker = Callable[[random.Random, str, int], list[Example]]

SIZES = {"train": 640, "validation": 96, "test": 160}

MAKERS: dict[str, Maker] = {
    "asc/cameras": aspects.cameras,
    "asc/routers": aspects.routers,
    "ccd/topics": topics.topics,
    "ccd/requests": topics.requests,
    "ner/news": entities.news,
    "ner/shop": entities.shop,
    "sum/plans": plans.plans,
    "sum/reports": plans.reports,
    "drg/hotels": dialogue.hotels,
    "drg/trains": dialogue.trains,
}


def generate(name: str, *, seed: int = 2021) -> dict[str, list[Example]]:
    """The three splits of one generated task, without a repeated example across or inside them.

    Args:
        name: one of `MAKERS`, for example "ner/news".
        seed: chooses another draw of the same task.

    Raises:
        KeyError: if there is no such task; the message lists those there are.
    """
    if name not in MAKERS:
        raise KeyError(f"no generated task {name!r}; there are: {', '.join(MAKERS)}")
    seen: set[str] = set()
    splits: dict[str, list[Example]] = {}
    for split, size in SIZES.items():
        stream = hashlib.sha256(f"{seed}/{name}/{split}".encode()).digest()
        drawn = MAKERS[name](random.Random(stream), split, 3 * size)
        splits[split] = unique = []
        for example in drawn:
            key = repr(sorted(example.items()))
            if key not in seen and len(unique) < size:
                seen.add(key)
                unique.append(example)
    return splits
