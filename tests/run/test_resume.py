"""A run killed at any point and resumed is, byte for byte, the run that was never stopped."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from tss.run.sequence import run_sequence

PRELOAD = [
    "tss.run.sequence",
    "transformers.models.bart.modeling_bart",
    "sklearn.metrics",
    "seqeval.metrics",
    "sacrebleu",
    "rouge_score.rouge_scorer",
]


@pytest.fixture(scope="module")
def processes():
    """A fork server that has imported everything once: a new process starts at once, and can really be killed."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    yield context
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


def run_until(processes, config, folder: Path, lines: int | None) -> int | None:
    """Run (or resume) in a process of its own; kill it when events.jsonl has so many lines. Gives its exit code."""
    process = processes.Process(target=run_sequence, args=(config, folder), kwargs={"resume": folder.is_dir()})
    process.start()
    while process.is_alive() and (lines is None or count_lines(folder) < lines):
        time.sleep(0.002)
    if lines is not None:
        process.kill()
    process.join()
    return process.exitcode


def count_lines(folder: Path) -> int:
    try:
        return (folder / "events.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def contents(folder: Path) -> dict[str, bytes]:
    """What must be equal: the matrix, the sealed tasks, the predictions, and the shared state."""
    paths = [folder / "matrix.json", folder / "config.yaml"]
    for pattern in ("tasks/*", "predictions/*", "adapters/*", "tss.json"):
        paths += sorted(folder.glob(pattern))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def story(folder: Path) -> list[dict[str, object]]:
    """The diary without what depends on the clock."""
    timed = ("time", "seconds", "step_seconds", "switch_seconds", "peak_bytes")
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


def after_each_kind(rng: random.Random, folder: Path) -> list[int]:
    """Numbers of lines: one at random after each kind of event of the run, the last aside."""
    kinds: dict[object, list[int]] = {}
    for number, event in enumerate(story(folder)[:-1], start=1):
        kinds.setdefault(event["event"], []).append(number)
    return sorted({max(2, rng.choice(numbers)) for numbers in kinds.values()})


def in_stretches(rng: random.Random, total: int, kills: int) -> list[int]:
    """Numbers of lines from 2 to total - 1: one at random in each of as many equal stretches of the run."""
    edges = [2 + i * (total - 2) // kills for i in range(kills + 1)]
    return [rng.randrange(start, end) for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("seed", "kills", "overrides"),
    [
        (1, None, ["zero_shot=true", "training.epochs=2"]),
        (2, 3, ["method=ncl", "precision=bfloat16", "training.epochs=2"]),
        (5, 3, ["method=mtl", "families.ner.epochs=1", "training.eval_batch_size=3"]),
        (3, 3, ["training.grad_accumulation=2", "training.patience=1", "method_options.soft_mask=update"]),
    ],
    ids=["tss", "ncl", "mtl", "tss-accumulate"],
)
def test_killed_runs_end_as_if_never_stopped(processes, tiny_config, tmp_path, seed, kills, overrides):
    check_killed(processes, tiny_config(*overrides), tmp_path, seed, kills)


def test_killed_runs_that_keep_states_below_the_adapters_do_too(processes, tiny_config, plain_backbone, tmp_path):
    config = tiny_config(f"backbone={plain_backbone}", "training.eval_batch_size=3", "training.epochs=2")
    check_killed(processes, config, tmp_path, 4, 3)


def check_killed(processes, config, tmp_path, seed, kills):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_until(processes, config, whole, None) == 0
    rng = random.Random(seed)
    points = after_each_kind(rng, whole) if kills is None else in_stretches(rng, count_lines(whole), kills)
    assert len(points) >= 3
    for lines in points:
        assert run_until(processes, config, killed, lines) == -9
    assert run_until(processes, config, killed, None) == 0
    assert contents(killed) == contents(whole)
    assert story(killed) == story(whole)
    assert len(contents(whole)) == 2 + 3 + 3 + 2 + 1
