"""Two tiny tasks on the tiny backbone, and `tss` called in this process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tss.cli.main import main


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def cli_data(tmp_path_factory) -> Path:
    """A classification and an extraction task of twelve training examples each."""
    root = tmp_path_factory.mktemp("cli-data")
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        words = ["battery", "screen", "phone", "camera"]
        reviews = [
            {"text": f"the {words[i % 4]} is {'good' if i % 2 else 'bad'}", "label": "plus" if i % 2 else "minus"}
            for i in range(count)
        ]
        people = [
            {"tokens": [("Alice", "Bob")[i % 2], "visits", "Paris"], "ner_tags": ["B-PER", "O", "B-LOC"]}
            for i in range(count)
        ]
        write_lines(root / "asc" / "phones" / f"{split}.jsonl", reviews)
        write_lines(root / "ner" / "people" / f"{split}.jsonl", people)
    return root


@pytest.fixture(scope="session")
def tiny_options(tiny_backbone, cli_data) -> list[str]:
    """Words and options of a run of seconds."""
    keys = ["adapters.bottleneck=4", "training.epochs=1", "training.batch_size=4", "training.source_length=16"]
    keys += ["training.target_length=16", "precision=float32", "device=cpu"]
    return [*keys, "--backbone", str(tiny_backbone), "--data", str(cli_data)]


@pytest.fixture
def tss(capsys):
    """`tss("run", …)` gives the exit code, standard output and standard error of a command line."""

    def call(*words) -> SimpleNamespace:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_options) -> Path:
    """A finished run of both tasks."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert main(["run", *tiny_options, "--out", str(folder), "--quiet"]) == 0
    return folder
