"""Summaries: find the one decision in a conversation or a report and state it in one plain sentence."""

from __future__ import annotations

import random

PEOPLE = "Anna Ben Clara David Emma Frank Helen Jack Laura Mark Nina Peter Rosa Simon Tom Vera".split()
THINGS = "tent map cake camera radio blanket guitar lamp ladder basket kettle rope".split()
PLACES = "station market river library church garden harbour school bridge museum".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
CHAT = (
    "I slept badly last night.",
    "The weather has been strange.",
    "My sister sends her love.",
    "Did you read the paper today?",
    "I have no idea where my keys are.",
    "That was a long week.",
)
PARTS = "pump roof engine gate bell clock boiler fence window stove".split()
FAULTS = "broken leaking loose rusty cracked missing".split()
FILLER = (
    "The visit began at nine.",
    "It rained for most of the day.",
    "Two chairs were moved to the hall.",
    "Nobody complained about the noise.",
    "The keys were handed back at noon.",
    "A second visit is not planned.",
)


def _plan(rng: random.Random) -> dict[str, object]:
    first, second = rng.sample(PEOPLE, 2)
    thing, place, day = rng.choice(THINGS), rng.choice(PLACES), rng.choice(DAYS)
    small_talk = rng.sample(CHAT, 3)
    turns = [
        f"{first}: {small_talk[0]}",
        f"{second}: {small_talk[1]}",
        f"{first}: Can you bring the {thing} to the {place}?",
        f"{second}: Yes, on {day}.",
    ]
    if rng.random() < 0.5:
        turns.insert(rng.randint(1, 4), f"{first}: {small_talk[2]}")
    return {"source": " ".join(turns), "target": f"{second} will bring the {thing} to the {place} on {day}."}


def _report(rng: random.Random) -> dict[str, object]:
    part, fault, place, person = rng.choice(PARTS), rng.choice(FAULTS), rng.choice(PLACES), rng.choice(PEOPLE)
    lines = [
        *rng.sample(FILLER, 2),
        f"At the {place} we found that the {part} was {fault}.",
        f"{person} promised to look after it.",
    ]
    lines.insert(rng.randint(0, 2), rng.choice(FILLER))
    return {"source": " ".join(lines), "target": f"{person} will repair the {fault} {part} at the {place}."}


def plans(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return conversations that agree on who brings what where and when; `split` acts only through `rng`."""
    return [_plan(rng) for _ in range(size)]


def reports(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return inspection reports that end with one repair."""
    return [_report(rng) for _ in range(size)]
