"""Small synthetic tasks, two of each family; a task is a pure function of (name, seed).

The answers are hidden from a bag of words: the sentiment belongs to one of two aspects, three in four test texts of the
family ccd use topic words that are not in the training split, an entity's type follows from its context and not from
its made-up name, a summary keeps one decision of a conversation, and a reply expresses an act's values in a sentence.
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
    """Return the three splits of one generated task; no example occurs twice within or across the splits.

    Args:
        name: one of `MAKERS`, for example "ner/news".
        seed: another seed gives another draw of the same task.

    Raises:
        KeyError: there is no such task; the message lists the available tasks.
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
