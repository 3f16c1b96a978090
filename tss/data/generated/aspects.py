"""Aspect sentiment: reviews of up to two aspects, often with opposite judgements; the label is that of one of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

GOOD = "excellent superb great wonderful perfect brilliant".split()
BAD = "terrible awful poor dreadful horrible bad".split()
NEUTRAL = ("I have not tried the {a} yet", "I cannot say much about the {a}", "the {a} is what one expects")
JOINTS = (" but ", ", while ", ", although ", ", whereas ")

CAMERA_ASPECTS = "lens battery flash screen zoom focus shutter strap viewfinder sensor".split()
ROUTER_ASPECTS = "signal setup range antenna manual firmware speed cable support interface".split()


def _clause(rng: random.Random, aspect: str, positive: bool) -> str:
    word = rng.choice(GOOD if positive else BAD)
    pattern = rng.choice(("the {a} is {w}", "the {a} seems {w}", "I find the {a} {w}", "what a {w} {a}"))
    return pattern.format(a=aspect, w=word)


def _review(rng: random.Random, aspects: Sequence[str]) -> dict[str, object]:
    asked, other = rng.sample(aspects, 2)
    positive = rng.random() < 0.5
    clauses = [_clause(rng, asked, positive)]
    second = rng.random()
    if second < 0.4:
        clauses.append(_clause(rng, other, not positive))
    elif second < 0.7:
        clauses.append(rng.choice(NEUTRAL).format(a=other))
    rng.shuffle(clauses)
    text = rng.choice(JOINTS).join(clauses) + "."
    return {"text": text[0].upper() + text[1:], "aspect": asked, "label": "positive" if positive else "negative"}


def cameras(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return camera reviews; `split` has no effect other than through `rng`."""
    return [_review(rng, CAMERA_ASPECTS) for _ in range(size)]


def routers(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return router reviews: the same sentiments about other aspects, so that knowledge can transfer."""
    return [_review(rng, ROUTER_ASPECTS) for _ in range(size)]
