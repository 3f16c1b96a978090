"""Entities with made-up names: the type of a name follows only from the words around it."""

from __future__ import annotations

import random

ONSETS = "b br c d dr f g gr h k l m n p r s st t tr v w z".split()
VOWELS = "a e i o u ai ea or".split()
CODAS = ["", "n", "r", "l", "s", "m", "nd", "rt", "ck"]

NEWS_FRAMES = (
    "{PER} , who was born in {LOC} , now works for {ORG} .",
    "{ORG} has opened an office in {LOC} , said its chairman {PER} .",
    "Yesterday {PER} travelled from {LOC} to {LOC} by train .",
    "Shares of {ORG} fell after {PER} left the company .",
    "The people of {LOC} elected {PER} as their mayor .",
    "{ORG} hired {PER} last year , and {ORG} was not pleased .",
    "Near {LOC} , Mrs {PER} and her son {PER} saw the fire .",
    "The river runs from {LOC} down to the sea at {LOC} .",
)
SHOP_FRAMES = (
    "I bought the {PROD} from {ORG} for {MONEY} dollars .",
    "Please send my {PROD} back to {ORG} before {DAY} .",
    "The {PROD} costs {MONEY} dollars , said {PER} .",
    "{PER} ordered two of the {PROD} on {DAY} .",
    "On {DAY} the people at {ORG} called {PER} about the {PROD} .",
    "My friend {PER} paid {MONEY} dollars to {ORG} on {DAY} .",
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def _name(rng: random.Random) -> str:
    syllables = (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((2, 2, 3))))
    return "".join(syllables).capitalize()


def _surface(rng: random.Random, tag: str) -> list[str]:
    if tag == "MONEY":
        return [str(rng.randint(2, 999))]
    if tag == "DAY":
        return [rng.choice(DAYS), *(["morning"] if rng.random() < 0.4 else [])]
    return [_name(rng) for _ in range(2 if rng.random() < 0.4 else 1)]


def _sentences(rng: random.Random, size: int, frames: tuple[str, ...]) -> list[dict[str, object]]:
    examples: list[dict[str, object]] = []
    for _ in range(size):
        tokens: list[str] = []
        tags: list[str] = []
        for piece in rng.choice(frames).split():
            if piece.startswith("{"):
                words = _surface(rng, piece.strip("{}"))
                tags += [f"{'I' if i else 'B'}-{piece.strip('{}')}" for i in range(len(words))]
            else:
                words = [piece]
                tags.append("O")
            tokens += words
        examples.append({"tokens": tokens, "ner_tags": tags})
    return examples


def news(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return sentences with persons, places and organisations; `split` has no effect other than through `rng`."""
    return _sentences(rng, size, NEWS_FRAMES)


def shop(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return sentences with persons, organisations, products, amounts and days."""
    return _sentences(rng, size, SHOP_FRAMES)
