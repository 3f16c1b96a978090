"""The examples run as they stand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.programs import run_program

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_chosen_backend(monkeypatch):
    monkeypatch.delenv("TSS_KERNELS_BACKEND", raising=False)


def run(*command: object) -> str:
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_program(*command, environment=environment, folder=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_trainer(tmp_path):
    out = run(sys.executable, "examples/trainer.py", tmp_path / "learned")
    assert "asc/cameras" in out
    assert "ner/shop" in out
    assert (tmp_path / "learned" / "tss.json").is_file()


ENDING = """
import os, runpy, sys
from accelerate import Accelerator
end = Accelerator.end_training
def checked(accelerator):
    end(accelerator)
    threads = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
    assert "pt_gloo_runloop" not in threads, "something keeps the process group, which may hang when it is freed"
Accelerator.end_training = checked
runpy.run_path("examples/two_processes.py", run_name="__main__")
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """No thread of gloo is left when the processes end."""
    (tmp_path / "ending.py").write_text(ENDING)
    out = run(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
              tmp_path / "ending.py", tmp_path / "learned")  # fmt: skip
    assert "asc/cameras" in out
    assert (tmp_path / "learned" / "tss.json").is_file()


@pytest.mark.parametrize(
    ("name", "says"),
    [("layer", "both tasks answer as when they were learned"), ("causal", "opposite"), ("later", "cheap")],
)
def test_examples_end_by_themselves(name, says):
    assert says in run(sys.executable, f"examples/{name}.py")
