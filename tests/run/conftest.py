"""Three tiny tasks, one of each kind, and a configuration that learns them in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tss.run.config import load_config

TASKS = ["asc/phones", "ner/people", "drg/trips"]


def examples(task: str, count: int, offset: int) -> list[dict[str, object]]:
    names, places, words = ["Alice", "Bob", "Carol"], ["Paris", "London", "Berlin"], ["battery", "screen", "camera"]
    rows: list[dict[str, object]] = []
    for i in range(offset, offset + count):
        name, place, word = names[i % 3], places[i // 3 % 3], words[i // 2 % 3]
        extra = ["very"] * (i % 5)
        if task == "asc/phones":
            good = i % 2 == 0
            text = " ".join(["the", word, "is", *extra, "good" if good else "bad"])
            rows.append({"text": text, "aspect": word, "label": "positive" if good else "negative"})
        elif task == "ner/people":
            tokens = [name, "visits", *extra, place]
            rows.append({"tokens": tokens, "ner_tags": ["B-PER", "O", *["O"] * len(extra), "B-LOC"]})
        else:
            rows.append({"source": " ".join([name, "buys", "a", *extra, word]), "target": f"{name} likes the {word}"})
    return rows


def write_tiny_data(root: Path) -> Path:
    """The folder, with twenty, six and six examples of each task."""
    for task in TASKS:
        (root / task).mkdir(parents=True)
        for split, count, offset in (("train", 20, 0), ("validation", 6, 20), ("test", 6, 26)):
            rows = "".join(json.dumps(row) + "\n" for row in examples(task, count, offset))
            (root / task / f"{split}.jsonl").write_text(rows)
    return root


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def plain_backbone(tmp_path_factory, tiny_backbone) -> Path:
    """The tiny backbone without dropout, so that what lies below its first adapter is run once for each example."""
    folder = tmp_path_factory.mktemp("plain") / "backbone"
    shutil.copytree(tiny_backbone, folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({key: 0.0 if "drop" in key else value for key, value in settings.items()}))
    return folder


def tiny_values(backbone, data):
    """A configuration of runs of seconds: three tasks of two epochs, answers of four tokens."""
    return {
        "backbone": str(backbone),
        "data": str(data),
        "tasks": TASKS,
        "adapters": {"bottleneck": 4},
        "training": {"epochs": 2, "batch_size": 4, "score_lr": 0.05, "source_length": 24, "target_length": 16},
        "generation": {"num_beams": 1, "min_new_tokens": 1, "max_new_tokens": 4},
        "precision": "float32",
        "device": "cpu",
        "checkpoint_steps": 2,
        "log_seconds": 0,
    }


@pytest.fixture
def tiny_config(tiny_backbone, tiny_data):
    """A function of overrides: the configuration of three tasks, three epochs, five steps each."""

    def make(*overrides: str):
        values = tiny_values(tiny_backbone, tiny_data)
        values["training"]["epochs"] = 3
        values["generation"] |= {"num_beams": 2, "max_new_tokens": 6}
        return load_config(values, list(overrides))

    return make


def read(folder, name="matrix.json"):
    return json.loads((folder / name).read_text())


def events(folder, name):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]
