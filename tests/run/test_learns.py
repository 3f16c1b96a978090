"""What can be learned at all: a handful of examples, by heart, on the embedded backbone with the `quick` preset.

The settings, the initialisation and the rates of the preset are what is tested: with weights or rates that do not fit
each other, an adapter of gates reaches 0 where a plain one reaches 100.
"""

from __future__ import annotations

import json

import pytest

from tss.data import load_task
from tss.run.config import load_config
from tss.run.sequence import run_sequence


@pytest.fixture
def by_heart(tmp_path):
    """A function: the score on its own training examples that a method reaches on the first `count` of a task."""

    def reach(task, count, epochs, batch, method):
        folder = tmp_path / "data" / task
        if not folder.exists():
            folder.mkdir(parents=True)
            lines = "\n".join(json.dumps(row) for row in load_task("generated", task, seed=2021).train[:count]) + "\n"
            for split in ("train", "validation", "test"):
                (folder / f"{split}.jsonl").write_text(lines)
        family = task.split("/")[0]
        changes = [
            f"data={tmp_path / 'data'}", f"tasks=[{task}]", f"method={method}", f"families.{family}.epochs={epochs}",
            f"training.batch_size={batch}", "probe_size=1",
        ]  # fmt: skip
        result = run_sequence(load_config("quick", changes), tmp_path / method)
        return json.loads((result.folder / "matrix.json").read_text())["matrix"][0][0]

    return reach


@pytest.mark.slow
@pytest.mark.parametrize(("task", "count", "epochs", "batch"), [("ner/news", 16, 20, 4), ("drg/hotels", 16, 40, 8)])
def test_gates_learn_by_heart_what_plain_adapters_do(by_heart, task, count, epochs, batch):
    plain = by_heart(task, count, epochs, batch, "ncl")
    assert plain > 90
    assert by_heart(task, count, epochs, batch, "tss") >= 0.95 * plain
