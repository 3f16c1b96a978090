"""The memory that `tss check` estimates, against that of the run itself."""

from __future__ import annotations

import json
import sys

import pytest

from tests.programs import Program

MEASURE = """
import json, sys
import torch
torch.set_num_threads(1)
from tss.run.config import load_config
what, folder, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
config = load_config("demo", values)
if what == "estimate":
    from tss.cli.estimating import estimate
    print(estimate(config).peak_bytes)
else:
    from tss.run.sequence import run_sequence
    peaks = []
    run_sequence(config, folder, progress=lambda e: peaks.append(e["peak_bytes"]) if e["event"] == "task_end" else None)
    print(max(peaks))
"""
SMALL = [
    "tasks=[drg/hotels, asc/cameras]", "training.epochs=1", "training.batch_size=32", "training.target_length=128",
    "limits={train: 32, validation: 4, test: 4}", "generation.max_new_tokens=4", "device=cpu",
]  # fmt: skip


@pytest.mark.parametrize("method", ["tss", "lwf", "full"])
def test_the_estimated_memory_is_that_of_the_run(method, tmp_path):
    """In processes of their own, since peak memory on a CPU is that of the whole process."""
    values = json.dumps([*SMALL, f"method={method}"])
    words = [(sys.executable, "-c", MEASURE, what, str(tmp_path / "run"), values) for what in ("estimate", "run")]
    programs = [Program(*one) for one in words]
    try:
        ended = [program.finish() for program in programs]
    finally:
        for program in programs:
            program.stop()
    assert [one.returncode for one in ended] == [0, 0], [one.stderr for one in ended]
    estimated, measured = (int(one.stdout) for one in ended)
    print(method, estimated >> 20, measured >> 20)
    assert estimated == pytest.approx(measured, rel=0.2), f"{estimated >> 20} MiB, in the run {measured >> 20} MiB"
