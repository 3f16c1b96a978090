"""Small sources in the formats that the catalog's tasks come in, with the types that `datasets` gives their columns."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

from tss.data.catalog import Entry, catalog

CONLL_TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]


def resized(entry: Entry, **changes) -> Entry:
    """An entry for a small source: what it says of sizes and draws is as given, the rest as in the table."""
    return Entry.model_validate({**entry.model_dump(), "rows": {}, "sizes": {}, **changes})


def reviews(count, start=0):
    """Aspect sentiment as its repository has it: an object of objects, blanks around the texts."""
    return json.dumps(
        {
            str(i): {"id": i, "polarity": "+-"[i % 2], "sentence": f" The screen is fine {i} . ", "term": " screen"}
            for i in range(start, start + count)
        }
    )


def write_reviews(root: Path, task="asc/ipod", sizes=(6, 2, 3)) -> Path:
    """The three files of an aspect task, below the folder of its repository."""
    for count, (name,) in zip(sizes, catalog()[task].files.values(), strict=True):
        path = root / "LifelongSentClass" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reviews(count))
    return root


def write_emails(root: Path, sizes=(4, 2, 3)) -> Path:
    """The archive of one repository that holds the e-mail threads."""
    path = root / "ConvoSumm" / "data" / "vanilla-20230109T143631Z-001.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for count, names in zip(sizes, catalog()["sum/emails"].files.values(), strict=True):
            for name, what in zip(names, ("thread", "summary"), strict=True):
                text = "".join(f"{what}   {i} \u2028 of   {count}\n" for i in range(count))
                archive.writestr(name.partition("!")[2], text)
    return root


def meetings(count) -> bytes:
    """Meetings as packed lines of JSON, with the fields that are not read."""
    turn = {"speaker": "A", "role": "PM", "utt": {"word": ["OK", ","], "pos_id": [1, 2], "ent_id": [0, 0]}}
    other = {"speaker": "B", "role": "UI", "utt": {"word": ["bye", "."], "pos_id": [1, 2], "ent_id": [0, 0]}}
    lines = [
        {"id": f"m{i}", "meeting": [turn, other], "summary": ["All agreed.", f"Meeting {i}."]} for i in range(count)
    ]
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())


def news(datasets, count):
    """Entities as numbers of classes, beside columns that are not read."""
    classes = datasets.List(datasets.ClassLabel(names=CONLL_TAGS))
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "tokens": datasets.List(text),
            "pos_tags": datasets.List(datasets.Value("int64")),
            "ner_tags": classes,
        }
    )
    rows = [
        {"id": str(i), "tokens": ["Bob", "Hope", f"w{i}"], "pos_tags": [1, 1, 1], "ner_tags": [1, 2, 5 if i % 2 else 0]}
        for i in range(count)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def topics(datasets, count, names, columns):
    """Texts in several columns, some of them empty, and a class by number; the classes come in turn."""
    label, *texts = columns
    features = datasets.Features(
        {label: datasets.ClassLabel(names=names), **{column: datasets.Value("string") for column in texts}}
    )
    rows = [
        {label: i % len(names), **{column: None if i % 7 == k else f"{column} {i}" for k, column in enumerate(texts)}}
        for i in range(count)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def dialogues(datasets, services):
    """MultiWOZ 2.2: turns as columns, acts nested in them; one dialogue for each list of services."""
    text = datasets.Value("string")
    slots = datasets.List({"slot_name": datasets.List(text), "slot_value": datasets.List(text)})
    turns = {
        "turn_id": datasets.List(text),
        "speaker": datasets.List(datasets.ClassLabel(names=["USER", "SYSTEM"])),
        "utterance": datasets.List(text),
        "dialogue_acts": datasets.List({"dialog_act": {"act_type": datasets.List(text), "act_slots": slots}}),
    }
    features = datasets.Features({"dialogue_id": text, "services": datasets.List(text), "turns": turns})

    def acts(*given):
        names = [{"slot_name": list(pairs), "slot_value": list(pairs.values())} for _, pairs in given]
        return {"dialog_act": {"act_type": [kind for kind, _ in given], "act_slots": names}}

    said = [
        ("I need a room", acts(("Hotel-Inform", {"type": "hotel"}))),
        (
            "The Lodge is cheap . ",
            acts(("Hotel-Inform", {"price": 'ch"eap', "Area": "north"}), ("general-reqmore", {"none": "none"})),
        ),
        ("Book it", acts(("Hotel-Inform", {"none": "none"}))),
        ("Which day ?", acts(("Hotel-Request", {"day": "?"}))),
        ("Monday", acts()),
        ("No room is free", acts(("Booking-NoBook", {"none": "none"}))),
    ]
    rows = [
        {
            "dialogue_id": f"D{i}",
            "services": names,
            "turns": {
                "turn_id": [str(k) for k in range(len(said))],
                "speaker": [k % 2 for k in range(len(said))],
                "utterance": [f"{words}" for words, _ in said],
                "dialogue_acts": [each for _, each in said],
            },
        }
        for i, names in enumerate(services)
    ]
    return datasets.Dataset.from_list(rows, features=features)
