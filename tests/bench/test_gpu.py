"""The one command of a GPU machine: what it would do, what is kept when it breaks off, what a second call does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.core import machine
from bench.core.machine import ROOT, describe_machine
from bench.gpu.__main__ import LIMIT, run_parts
from bench.gpu.children import Finished, run_child, stop
from bench.gpu.parts import (
    ANYWHERE,
    KERNEL_TESTS,
    PARTS,
    Outcome,
    Part,
    Run,
    choose,
    outcome_of_sanitizer,
    outcome_of_tests,
)
from bench.gpu.predicted import ROWS, SHAPES, as_text, predictions
from bench.gpu.result_file import ResultFile

STAMP = {"sources": "a"}


@pytest.fixture
def run(tmp_path) -> Run:
    return Run("cuda", ResultFile(tmp_path / "results.json"), {"tools": {"compute-sanitizer": None}}, {})


def part(name: str, outcome, seconds: int = 10, always: bool = False) -> Part:
    return Part(name, seconds, "does something", outcome, always=always)


def good(run: Run, seconds: float) -> Outcome:
    return Outcome("done", "all well")


def soon() -> float:
    return time.monotonic() + 100


def kept(run: Run) -> dict:
    return json.loads(run.results.path.read_text())["parts"]


def test_two_calls_of_seven_minutes_do_everything_the_most_important_first():
    chosen = choose([])
    names = [one.name for one in chosen]
    first = names.index("measure.shapes") + 1
    assert names[:first] == ["build", "tests.gpu", "tests.kernels", "measure.shapes"]
    assert sum(one.seconds for one in chosen[:first]) <= LIMIT < 7 * 60
    assert sum(one.seconds for one in [chosen[0], *chosen[first:]]) <= LIMIT


def test_what_is_left_to_other_machines_is_there():
    assert [name for name in ANYWHERE if not (KERNEL_TESTS / f"{name}.py").exists()] == []
    starts = ("find_cxx", "find_nvcc", "cuobjdump", "inspectors.resources import", "release_check import")
    compiles = {path.stem for path in KERNEL_TESTS.glob("test_*.py") if any(one in path.read_text() for one in starts)}
    # What asks for the compiler alone, or reads a committed table.
    assert compiles - {"test_bounds"} <= set(ANYWHERE), "minutes of a GPU would go to what shows the same anywhere"


def test_an_interrupted_run_keeps_the_parts_before(run):
    def interrupted(run: Run, seconds: float) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parts([part("first", good), part("second", interrupted), part("third", good)], run, soon(), False, STAMP)
    assert {name: one["status"] for name, one in kept(run).items()} == {"first": "done", "second": "stopped"}


def test_a_fault_in_one_part_does_not_cost_the_others(run):
    def faulty(run: Run, seconds: float) -> Outcome:
        raise OSError("no such tool")

    assert run_parts([part("first", faulty), part("second", good)], run, soon(), False, STAMP) == ["first"]
    assert (kept(run)["first"]["status"], kept(run)["first"]["reason"]) == ("failed", "OSError: no such tool")
    assert kept(run)["second"]["status"] == "done"


def test_what_earlier_parts_leave_over_goes_to_the_next(run):
    limits = []

    def noting(run: Run, seconds: float) -> Outcome:
        limits.append(seconds)
        return Outcome("done", "")

    run_parts([part("a", noting, 10), part("b", noting, 20)], run, time.monotonic() + 45, False, STAMP)
    assert limits == [pytest.approx(25, abs=1), pytest.approx(45, abs=1)]


def test_a_second_call_does_what_the_first_had_no_time_for(run):
    ran = []

    def noting(name: str, outcome: Outcome):
        def function(run: Run, seconds: float) -> Outcome:
            ran.append(name)
            return outcome

        return function

    parts = [
        part("build", noting("build", Outcome("done", "made")), always=True),
        part("wrong", noting("wrong", Outcome("failed", "wrong"))),
        part("long", noting("long", Outcome("done", "")), seconds=1000),
        part("short", noting("short", Outcome("done", ""))),
    ]
    assert run_parts(parts, run, soon(), False, STAMP) == ["wrong"]
    assert ran == ["build", "wrong", "short"]
    assert kept(run)["long"]["status"] == "not run"
    ran.clear()
    assert run_parts(parts, run, soon(), True, STAMP) == ["wrong"], "still failed, though not run again"
    assert ran == ["build", "long"]
    ran.clear()
    run_parts(parts, run, soon(), True, {"sources": "b"})
    assert ran == ["build", "wrong", "short"], "other sources: everything anew"


def measured(group: str, failed: list[str], seconds: float = 1.0) -> dict:
    entry = {"group": group, "fullname": f"{group}: tss", "stats": {"median": seconds}}
    return {"benchmarks": [entry], "machine_info": {}, "commit_info": {}, "datetime": "", "version": "",
            "tss": {"tiny": False, "ceilings": None, "failed": failed, "skipped": []}}  # fmt: skip


def test_groups_are_added_and_what_is_measured_again_is_replaced(tmp_path):
    path = tmp_path / "deep" / "results.json"
    ResultFile(path).merge(measured("a: x", ["a: x: eager: wrong"]))
    ResultFile(path).merge(measured("b: y", ["b: y: eager: wrong"]))
    ResultFile(path).merge(measured("a: x", [], seconds=2.0))
    content = json.loads(path.read_text())
    assert {one["group"]: one["stats"]["median"] for one in content["benchmarks"]} == {"a: x": 2.0, "b: y": 1.0}
    assert content["tss"]["failed"] == ["b: y: eager: wrong"]
    path.write_text('{"benchmarks": []}')
    with pytest.raises(ValueError, match="name another with --out"):
        ResultFile(path)


def test_names_of_parts():
    sanitizers = ["sanitize.memcheck", "sanitize.racecheck", "sanitize.initcheck"]
    assert [one.name for one in choose(["sanitize"])] == sanitizers
    assert [one.name for one in choose(["adamw", "tests.gpu"])] == ["tests.gpu", "measure.adamw"]
    assert choose([]) == [part for part in PARTS if not part.named]
    with pytest.raises(ValueError, match=r"no part 'adam': there are build, tests\.gpu"):
        choose(["adam"])


@pytest.mark.parametrize(
    ("output", "code", "status"),
    [
        ("48 calls ran\n========= ERROR SUMMARY: 0 errors", 0, "done"),
        ("48 calls ran\n========= ERROR SUMMARY: 2 errors", 86, "failed"),
        ("========= ERROR SUMMARY: 0 errors", 0, "failed"),  # the calls never ran to their end
        ("48 calls ran", 0, "failed"),  # nothing was watched
        ("Device not supported", 1, "failed"),
        ("12 calls", None, "stopped"),
    ],
)
def test_the_sanitizer_must_have_watched_everything(output, code, status):
    assert outcome_of_sanitizer(Finished(code, output)).status == status


def test_the_sanitizer_says_in_whose_kernel():
    found = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at void tss::pack_gates_kernel<float>(tss::Scores)+0x1f0
=========     by thread (0,0,0) in block (0,0,0)
1 calls ran
========= ERROR SUMMARY: 1 errors"""
    outcome = outcome_of_sanitizer(Finished(86, found))
    assert outcome.status == "failed"
    assert "1 in void tss::pack_gates_kernel<float>(tss::Scores)" in outcome.reason


@pytest.mark.parametrize(
    ("output", "code", "outcome"),
    [
        ("...\n5 passed, 2 skipped in 3.1s", 0, Outcome("done", "5 passed, 2 skipped in 3.1s")),
        ("5 passed in 3.1s", None, Outcome("stopped", "stopped at its time limit: 5 passed in 3.1s")),
        ("FAILED a.py::b - wrong\n1 failed, 5 passed in 3s", 1,
         Outcome("failed", "1 failed, 5 passed in 3s\nFAILED a.py::b - wrong")),
        ("usage: pytest", 4, Outcome("failed", "ended with 4: usage: pytest")),
    ],
)  # fmt: skip
def test_what_pytest_says_is_what_a_part_says(output, code, outcome):
    assert outcome_of_tests(Finished(code, output)) == outcome


def alive(process: int) -> bool:
    """Whether it runs: what only waits for its parent to collect it does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_ends_at_its_limit(tmp_path):
    assert run_child([sys.executable, "-c", "import time; time.sleep(600)"], 1.0, tmp_path / "log").code is None
    finished = run_child([sys.executable, "-c", "print('said'); raise SystemExit(3)"], 600, tmp_path / "log")
    assert (finished.code, finished.output.strip()) == (3, "said")


def test_a_child_is_interrupted_first_and_stopped_with_what_it_started():
    script = (
        "import signal, subprocess, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job starts without
        "started = subprocess.Popen(['sleep', '600'])\n"
        "try:\n"
        "    print(started.pid, flush=True)\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    process = int(child.stdout.readline())
    stop(child)
    assert child.stdout.read() == b"interrupted\n"
    while alive(process):
        pass  # it was killed, and goes in its own time


def gpu_sh(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(ROOT / "scripts" / "gpu.sh"), *arguments], capture_output=True, text=True,
        env=environment | {"PYTHON": sys.executable} | variables, cwd="/",
    )  # fmt: skip


def torch_of(monkeypatch, cuda: str | None, error: Exception | None) -> None:
    """Puts a torch without a usable GPU in the place of this one; `error` is what it raises when made to use one."""

    def init() -> None:
        if error is not None:
            raise error

    functions = SimpleNamespace(is_available=lambda: False, device_count=lambda: 0, init=init)
    torch = SimpleNamespace(__version__="2.9.0", version=SimpleNamespace(cuda=cuda), cuda=functions)
    monkeypatch.setattr(machine.importlib, "import_module", {"torch": torch}.__getitem__)


@pytest.mark.parametrize(
    ("cuda", "visible", "error", "says", "remedy"),
    [
        ("13.0", None, RuntimeError("The NVIDIA driver on your\nsystem is too old (found version 12040)."),
         "torch 2.9.0 for CUDA 13.0: The NVIDIA driver on your system is too old (found version 12040)",
         "update the driver, or install a build of torch"),
        (None, None, AssertionError("Torch not compiled with CUDA enabled"), "torch 2.9.0 was built without CUDA",
         "install a build of torch for a CUDA version"),
        ("13.0", "", RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available",
         "unset CUDA_VISIBLE_DEVICES, which is ''"),
        ("13.0", None, None, "torch.cuda.is_available() is False, and torch finds 0 devices", "update the driver"),
    ],
)  # fmt: skip
def test_why_torch_cannot_use_a_gpu(monkeypatch, cuda, visible, error, says, remedy):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    torch_of(monkeypatch, cuda, error)
    found = describe_machine()
    assert found["gpus"] == []
    before, _, after = found["why_no_gpu"].partition(". Remedy: ")
    assert says in before
    assert after.startswith(remedy)


def nvidia_smi(folder: Path, prints: str) -> str:
    """A PATH with an nvidia-smi that prints this."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\necho '{prints}'\n")
    file.chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def test_a_gpu_that_torch_cannot_use_is_a_failure(tmp_path):
    path = nvidia_smi(tmp_path, "GPU 0: NVIDIA H200 (UUID: GPU-1)")
    done = gpu_sh("--parts", "build", "--out", str(tmp_path / "x.json"), PATH=path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED: nvidia-smi lists GPU 0: NVIDIA H200, but torch can use none: torch" in done.stdout
    assert "Remedy: " in done.stdout
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("prints", "listed"),
    [("GPU 0: NVIDIA H200 (UUID: GPU-1)", ["GPU 0: NVIDIA H200"]), ("No devices found.", []), ("", [])],
)
def test_the_gpus_that_nvidia_smi_lists(tmp_path, monkeypatch, prints, listed):
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path, prints))
    assert machine.listed_gpus() == listed


def test_a_dry_run_shows_the_sizes_of_a_gpu_on_any_machine(tmp_path):
    done = gpu_sh("--dry-run", "--parts", "tests,measure.shapes,measure.adamw", "--out", str(tmp_path / "x.json"))
    assert done.returncode == 0, done.stderr
    for said in ("Nothing is run", "tests.gpu", "rows=65536 in=1024 out=64 bfloat16", "AdamW fused + multiply"):
        assert said in done.stdout
    assert "rows=512 " not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_whole_command_on_a_cpu_writes_one_file_that_readers_take(tmp_path):
    out = tmp_path / "out.json"
    done = gpu_sh(
        "--device", "cpu", "--parts", "sanitize.memcheck,measure.adamw", "--seconds", "300", "--out", str(out)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(out.read_text())
    adamw, sanitizer = content["parts"]["measure.adamw"], content["parts"]["sanitize.memcheck"]
    assert (adamw["status"], sanitizer["status"]) == ("done", "skipped")
    assert {"sources", "started", "seconds"} <= set(adamw)
    read = subprocess.run(
        [sys.executable, "-m", "bench.report", "table", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert read.returncode == 0, read.stderr
    assert "soft_masked_adamw_ update, two tensors" in read.stdout


def test_the_predicted_times_lie_beside_the_measured_ones():
    lines = predictions("sm_90")
    assert len(lines) == len(SHAPES) * len(ROWS)
    assert all({"triton", "cuda"} <= set(line["by"]) for line in lines)
    assert "packed_linear 4096 x 1024 -> 64: triton 3.8 to 6.4 us (port) | cuda 4.8 to 7.3 us (L2) |" in as_text(lines)
    assert predictions("sm_80") == []


def test_a_wrong_part_is_named():
    done = gpu_sh("--parts", "speed")
    assert done.returncode == 2
    assert "no part 'speed': there are build, tests.gpu" in done.stderr
