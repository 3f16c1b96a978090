"""Run folders as the runner writes them, with made-up numbers: the report must not need a real run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tss.run.folder import RunFolder

KINDS = {
    "asc": "classification",
    "ccd": "classification",
    "ner": "extraction",
    "sum": "generation",
    "drg": "generation",
}
MAIN = {"asc": "macro_f1", "ccd": "macro_f1", "ner": "entity_f1", "sum": "rouge1", "drg": "bleu"}
LAYERS = [
    f"model.{side}.layers.{i}.adapter.{part}"
    for side in ("encoder", "decoder")
    for i in range(3)
    for part in ("down", "up")
]


def task_names(count: int) -> list[str]:
    """Names of mixed families; one is hostile to HTML, mathtext and file names."""
    names = [f"{list(KINDS)[i % 5]}/task_number_{i + 1}" for i in range(count)]
    names[0] = "asc/<b>ipod</b> & $x_1$"
    return names


def scores(count: int, forget: float, rng: np.random.Generator) -> list[list[float | None]]:
    """A lower triangle; each later row loses up to `forget` points."""
    own = rng.uniform(20, 95, count)
    return [
        [float(own[j] - forget * (i - j) * rng.uniform(0.5, 1)) if j <= i else None for j in range(count)]
        for i in range(count)
    ]


def write_synthetic_run(
    folder: Path, count: int, *, method: str = "tss", forget: float = 0.0, learned: int | None = None, seed: int = 0
) -> Path:
    """Writes a run folder of `count` tasks of which `learned` (default: all) are done."""
    rng = np.random.default_rng(seed)
    tasks, done = task_names(count), count if learned is None else learned
    full = scores(count, forget, rng)
    matrix = [row if i < done else [None] * count for i, row in enumerate(full)]
    kinds = {t: KINDS[t.split("/")[0]] for t in tasks}
    main = {t: MAIN[t.split("/")[0]] for t in tasks}
    sizes = {t: 20 + 7 * i for i, t in enumerate(tasks)}
    folder.mkdir(parents=True)
    document = {
        "tasks": tasks,
        "kinds": kinds,
        "main": main,
        "test_size": sizes,
        "matrix": matrix,
        "summary": {},
        "method": method,
        "label": "",
    }
    (folder / "matrix.json").write_text(json.dumps(document))
    config = {
        "method": method,
        "method_options": {"soft_mask": "update"} if method == "tss" else {},
        "backbone": "embedded",
        "seed": seed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "env.json").write_text(json.dumps({"python": "3.11", "device": "cpu AVX2", "threads": 2}))
    with (folder / "events.jsonl").open("w") as stream:
        for event in _events(tasks, kinds, sizes, full, done, count, method, rng):
            stream.write(json.dumps({"time": 1.7e9, **event}) + "\n")
    for i, task in enumerate(tasks[:done]):
        path = RunFolder(folder).predictions(i, task)
        path.parent.mkdir(exist_ok=True)
        answers = (
            {"prediction": ["O", "B-PER"], "reference": ["O", "O"]}
            if kinds[task] == "extraction"
            else {"prediction": f"<i>answer</i> {i}", "reference": f"answer {i}"}
        )
        path.write_text(f"{json.dumps(answers)}\n" * 5)
    if method == "tss":
        _write_gates(folder / "tasks", tasks[:done], rng)
    return folder


def _events(tasks, kinds, sizes, matrix, done, count, method, rng):
    yield {
        "event": "run_begin",
        "tasks": tasks,
        "kinds": kinds,
        "method": method,
        "backbone": "embedded",
        "parameters": 7_500_000,
        "precision": "bfloat16",
        "device": "cpu",
    }
    for i, task in enumerate(tasks[: min(done + 1, count)]):
        yield {
            "event": "task_begin",
            "task": task,
            "index": i,
            "kind": kinds[task],
            "train": 320,
            "validation": 40,
            "test": sizes[task],
            "epochs": 5,
            "steps": 50,
        }
        for epoch in range(1, 6):
            for step in range(0, 10, 3):
                loss = 2 / epoch + rng.uniform(0, 0.2)
                yield {
                    "event": "step",
                    "task": task,
                    "index": i,
                    "epoch": epoch - 1,
                    "step": step,
                    "loss": loss,
                    "score_lr": 0.01,
                    "seconds": 0.1,
                }
            value = matrix[i][i] * (1 - 0.5 / epoch)
            yield {
                "event": "epoch",
                "task": task,
                "index": i,
                "epoch": epoch - 1,
                "loss": 2 / epoch,
                "validation": value,
                "metric": MAIN[task.split("/")[0]] if kinds[task] != "generation" else "loss",
            }
        if i == done:
            return
        gated = (
            {
                "density": {x: float(rng.uniform(0.45, 0.55)) for x in LAYERS},
                "flipped": {x: float(rng.uniform(0.01, 0.2)) for x in LAYERS},
                "moved": {x: float(rng.uniform(0.01, 0.05)) for x in LAYERS},
                "importance_mean": {x: float(1 - 0.9 ** (i + 1)) for x in LAYERS},
            }
            if method == "tss"
            else {}
        )
        kept = {"gates": 6144 if method == "tss" else 0, "head": 263_000 if i % 5 < 3 else 0}
        yield {
            "event": "task_end",
            "task": task,
            "index": i,
            "best_epoch": 4,
            "seconds": 31.5,
            "peak_bytes": 900_000_000,
            "bytes": {**kept, "total": sum(kept.values())},
            **gated,
        }
        for j in range(i + 1):
            yield {
                "event": "evaluated",
                "task": tasks[j],
                "after": i,
                "metrics": {main_of(tasks[j]): matrix[i][j]},
                "main": main_of(tasks[j]),
                "value": matrix[i][j],
                "seconds": 0.7,
            }
        yield {"event": "verified", "after": i, "tasks": i + 1, "frozen": "0"}
    yield {"event": "run_end", "seconds": 35.0 * count, "summary": {}}


def main_of(task):
    return MAIN[task.split("/")[0]]


def _write_gates(folder: Path, tasks: list[str], rng: np.random.Generator) -> None:
    import torch

    from tss.adapters.storage import write_tensors

    folder.mkdir()
    bits = {x: rng.random((16, 32)) < 0.5 for x in LAYERS}
    for i, task in enumerate(tasks):
        bits = {x: np.where(rng.random(b.shape) < 0.1, ~b, b) for x, b in bits.items()}
        tensors = {f"gates.{x}": torch.from_numpy(np.packbits(b, axis=1, bitorder="little")) for x, b in bits.items()}
        write_tensors(folder / f"{i + 1:02d}-task.safetensors", tensors, {"name": task, "state": "sealed"})


@pytest.fixture
def make_run(tmp_path):
    """`make_run(name, count, **how)` writes a run folder under the test's own folder."""

    def make(name: str, count: int, **how) -> Path:
        return write_synthetic_run(tmp_path / name, count, **how)

    return make


@pytest.fixture(scope="session")
def write_run():
    """The writer itself, for fixtures with a wider scope."""
    return write_synthetic_run
