"""Every method through the runner: tasks of all kinds learned, stopped and resumed to the same bytes, and predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import tss
from tests.run.conftest import TASKS, examples, tiny_values, write_tiny_data
from tss.methods import METHODS
from tss.run.config import load_config
from tss.run.config_files import merge
from tss.run.sequence import run_sequence

OPTIONS = {"full": ["training.adapter_lr=1e-3"], "ewc": ["method_options.strength=10"]}
SGD = {"training": {"optimizer": "sgd", "score_lr": 1.0}}


class Stop(Exception):
    pass


def stop_at(task: str, epoch: int, step: int):
    """A listener that ends the process's run right after a step."""

    def listen(event) -> None:
        if event["event"] == "step" and (event["task"], event["epoch"], event["step"]) == (task, epoch, step):
            raise Stop

    return listen


def contents(folder: Path) -> dict[str, bytes]:
    paths = [folder / "matrix.json", folder / "tss.json"]
    for pattern in ("tasks/*", "predictions/*", "adapters/*"):
        paths += sorted(folder.glob(pattern))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in METHODS), ("tss", SGD)])
def test_a_run_is_stopped_resumed_to_the_same_bytes_and_predicts(name, changes, data, tiny_backbone, tmp_path):
    values = merge(tiny_values(tiny_backbone, data) | {"method": name}, changes)
    config = load_config(values, OPTIONS.get(name, []))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    result = run_sequence(config, whole)
    for task, epoch, step in ((TASKS[1], 0, 3), (TASKS[2], 1, 1)):
        with pytest.raises(Stop):
            run_sequence(config, stopped, resume=stopped.is_dir(), progress=stop_at(task, epoch, step))
    run_sequence(config, stopped, resume=True)
    assert contents(stopped) == contents(whole)
    if METHODS[name].never_forgets:
        assert result.summary["forgetting"] == 0.0

    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    for cache_bytes in (None, 1000):  # all read, and each read from the folder when it is asked
        model = tss.load(AutoModelForSeq2SeqLM.from_pretrained(tiny_backbone), whole, cache_bytes=cache_bytes)
        model.eval()
        for number, task in enumerate(TASKS, start=1):
            kind, rows = model.tss.tasks[task].kind, examples(task, 6, 26)
            encoded = kind.encode_all(rows, tokenizer, source_length=24, target_length=16)
            (path,) = (whole / "predictions").glob(f"{number:02d}-*")
            told = [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
            with model.tss.using(task):
                found = [
                    kind.predict(model, kind.collate([row], pad_id=1), tokenizer, examples=[one])[0]
                    for row, one in zip(encoded, rows, strict=True)
                ]
            assert found == told
