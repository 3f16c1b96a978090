"""Dialogue replies: a system act with its values, expressed as a clerk would say it."""

from __future__ import annotations

import random

HOTEL_FIRST = "Rose Old Blue White Park Lake Green Silver Red Golden".split()
HOTEL_SECOND = "Garden Mill Anchor Hart House View Lodge Arms Crown Gate".split()
AREAS = "north south east west centre".split()
PRICES = "cheap moderate expensive".split()
CITIES = "London Cambridge Oxford Leeds York Bristol Norwich Ely".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def _hotel(rng: random.Random) -> dict[str, object]:
    name = f"{rng.choice(HOTEL_FIRST)} {rng.choice(HOTEL_SECOND)}"
    area, price = rng.choice(AREAS), rng.choice(PRICES)
    stars, nights, day = rng.randint(2, 5), rng.randint(2, 9), rng.choice(DAYS)
    acts = (
        (
            f"inform(name={name}, area={area}, price={price})",
            f"The {name} is a {price} hotel in the {area} of town. Shall I book it?",
        ),
        (f"inform(name={name}, stars={stars})", f"The {name} has {stars} stars. Would you like a room there?"),
        (f"book(name={name}, nights={nights}, day={day})", f"I have booked the {name} for {nights} nights from {day}."),
        (f"nooffer(area={area}, price={price})", f"I am sorry, there is no {price} hotel in the {area}."),
        ("request(area)", "Which part of town would you like to stay in?"),
    )
    source, target = rng.choice(acts[: 5 if rng.random() < 0.2 else 4])
    return {"source": source, "target": target}


def _train(rng: random.Random) -> dict[str, object]:
    start, end = rng.sample(CITIES, 2)
    hour, minute = rng.randint(5, 22), rng.choice((5, 10, 15, 30, 45))
    day, price, seats = rng.choice(DAYS), rng.randint(8, 60), rng.randint(1, 6)
    time = f"{hour}:{minute:02d}"
    acts = (
        (f"inform(from={start}, to={end}, leave={time})", f"The train from {start} to {end} leaves at {time}."),
        (
            f"inform(from={start}, to={end}, price={price})",
            f"A ticket from {start} to {end} costs {price} pounds. Shall I book it?",
        ),
        (f"book(to={end}, day={day}, seats={seats})", f"I have booked {seats} seats to {end} for {day}."),
        (f"nooffer(from={start}, day={day})", f"I am sorry, there is no train from {start} on {day}."),
    )
    source, target = rng.choice(acts)
    return {"source": source, "target": target}


def hotels(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return replies about hotels; `split` has no effect other than through `rng`."""
    return [_hotel(rng) for _ in range(size)]


def trains(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return replies about trains."""
    return [_train(rng) for _ in range(size)]
