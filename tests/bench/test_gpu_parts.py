"""The parts of a run: their time, what is kept when one breaks off, what is left out when a run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import parts as all_parts
from bench.gpu import suite
from bench.gpu.__main__ import run_parts
from bench.gpu.context import Context, Outcome
from bench.gpu.parts import PARTS, Part, choose
from bench.gpu.processes import run_child
from bench.measure.report import Report
from bench.measure.revision import ROOT, sources

TOOLS = {"tools": {"compute-sanitizer": None}}


@pytest.fixture
def context(tmp_path) -> Context:
    return Context(sys.executable, "cuda", False, Report(tmp_path / "results.json"), TOOLS)


def part(name: str, run, seconds: int = 10) -> Part:
    return Part(name, seconds, "does something", run)


def good(context: Context, seconds: float) -> Outcome:
    return Outcome("done", "all well", {"limit": seconds})


def soon() -> float:
    return time.monotonic() + 100


def test_the_time_limits_together_stay_under_nine_minutes():
    assert sum(one.seconds for one in choose([])) <= 530


def test_an_interrupted_run_keeps_the_parts_before(context):
    def interrupted(context: Context, seconds: float) -> Outcome:
        context.report.update("second", result={"half": True})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parts([part("first", good), part("second", interrupted), part("third", good)], context, soon())
    kept = context.report.read()["parts"]
    assert kept["first"]["status"] == "done"
    assert (kept["second"]["status"], kept["second"]["result"]) == ("stopped", {"half": True})
    assert "third" not in kept


def test_a_fault_in_one_part_does_not_cost_the_others(context):
    def faulty(context: Context, seconds: float) -> Outcome:
        raise OSError("no such tool")

    assert run_parts([part("first", faulty), part("second", good)], context, soon()) == ["first"]
    kept = context.report.read()["parts"]
    assert (kept["first"]["status"], kept["first"]["reason"]) == ("failed", "OSError: no such tool")
    assert kept["second"]["status"] == "done"


def test_what_earlier_parts_leave_over_goes_to_the_next(context):
    limits = []

    def noting(context: Context, seconds: float) -> Outcome:
        limits.append(seconds)
        return Outcome("done", "")

    run_parts([part("first", noting, 10), part("second", noting, 20)], context, time.monotonic() + 45)
    assert limits == [pytest.approx(25, abs=1), pytest.approx(45, abs=1)]


def test_when_the_time_is_up_a_part_is_not_begun_and_a_run_goes_on_with_it(context, capsys):
    stamp = {"sources": "a"}
    run_parts([part("first", good)], context, soon(), stamp=stamp)
    run_parts([part("second", good)], context, time.monotonic(), stamp=stamp)
    assert context.report.part("second")["status"] == "not run"
    ran = []

    def noting(name: str):
        def run(context: Context, seconds: float) -> Outcome:
            ran.append(name)
            return Outcome("failed", "wrong")

        return run

    both = [part("first", noting("first")), part("second", noting("second"))]
    assert run_parts(both, context, soon(), resume=True, stamp=stamp) == ["second"]
    assert ran == ["second"]
    assert run_parts(both, context, soon(), resume=True, stamp=stamp) == ["second"], (
        "still failed, though not run again"
    )
    run_parts(both, context, soon(), resume=True, stamp={"sources": "b"})
    assert ran == ["second", "first", "second"], "other sources: everything anew"


def test_a_part_that_leaves_something_on_the_machine_runs_again(context):
    ran = []

    def noting(context: Context, seconds: float) -> Outcome:
        ran.append(seconds)
        return Outcome("done", "made")

    always = Part("build", 10, "makes a file", noting, always=True)
    for _ in range(2):
        run_parts([always, part("other", noting)], context, soon(), resume=True, stamp={"sources": "a"})
    assert len(ran) == 3


def test_names_of_parts():
    assert [one.name for one in choose(["sanitize"])] == [
        "sanitize.memcheck", "sanitize.racecheck", "sanitize.initcheck"
    ]  # fmt: skip
    assert [one.name for one in choose(["adamw", "tests.gpu"])] == ["tests.gpu", "measure.adamw"]
    assert choose([]) == [part for part in PARTS if not part.named]
    with pytest.raises(ValueError, match=r"no part 'adam': there are env, build, tests\.gpu"):
        choose(["adam"])


def alive(process: int) -> bool:
    """Whether it runs: what only waits for its parent to collect it does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_is_stopped_with_what_it_started(tmp_path):
    script = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    start = time.monotonic()
    finished = run_child([sys.executable, "-c", script], 2.0, os.environ, tmp_path / "log")
    assert finished.code is None
    assert time.monotonic() - start < 30
    while alive(int(finished.output)) and time.monotonic() - start < 30:
        pass  # it was killed, and goes in its own time
    assert not alive(int(finished.output))
    again = run_child([sys.executable, "-c", "print('second'); raise SystemExit(3)"], 20, os.environ, tmp_path / "log")
    assert (again.code, again.output.strip()) == (3, "second")
    assert finished.output in (tmp_path / "log").read_text()


TESTS = """
import pytest
def test_right(): assert True
def test_wrong(): assert 1 == 2
@pytest.mark.skip(reason="no second GPU")
def test_left_out(): pass
"""


def test_the_suites_result_names_what_failed_and_why_others_were_left_out(tmp_path, context, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # or the inner run takes itself for a worker
    folder, progress = tmp_path / "tests", tmp_path / "progress.jsonl"
    folder.mkdir()
    (folder / "test_it.py").write_text(TESTS)
    (folder / "test_lacking.py").write_text("import os, no_such_package\nfrom numpy import array\n")
    (folder / "test_asking.py").write_text(
        'import pytest\npytest.importorskip("no_such_package")\nimport no_such_package'
    )
    missing = suite.cannot_run(folder)
    assert missing == {folder / "test_lacking.py": "no_such_package"}
    command = [*suite.command(sys.executable, folder, list(missing), parallel=False), "-c", "/dev/null"]
    finished = context.run(command, 60, BENCH_GPU_PROGRESS=str(progress))
    status, reason, numbers = suite.result(progress, finished, missing)
    assert status == "failed"
    assert (numbers["passed"], list(numbers["failed"].values())) == (1, ["assert 1 == 2"])
    assert numbers["skipped"]["no second GPU"] == 1
    assert numbers["not_collected"] == {"test_lacking.py": "the package no_such_package is not installed"}
    assert "1 passed, 1 failed" in reason
    stopped = suite.result(progress, finished._replace(code=None), {})
    assert stopped[0] == "stopped"
    assert stopped[2]["passed"] == 1


def test_a_suite_that_cannot_start_has_failed(tmp_path, context):
    finished = context.run([sys.executable, "-c", "raise SystemExit(4)"], 20)
    status, reason, _ = suite.result(tmp_path / "none", finished, {})
    assert (status, "ended with 4" in reason) == ("failed", True)


@pytest.mark.parametrize(
    ("output", "code", "status"),
    [
        ("48 calls ran\n========= ERROR SUMMARY: 0 errors", 0, "done"),
        ("48 calls ran\n========= ERROR SUMMARY: 2 errors", 86, "failed"),
        ("========= ERROR SUMMARY: 0 errors", 0, "failed"),  # the calls never ran to their end
        ("48 calls ran", 0, "failed"),  # nothing was watched
        ("Device not supported", 1, "failed"),
    ],
)
def test_the_sanitizer_must_have_watched_everything(tmp_path, output, code, status):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
    tool.chmod(0o755)
    context = Context(
        sys.executable, "cuda", False, Report(tmp_path / "r.json"), {"tools": {"compute-sanitizer": str(tool)}}
    )
    (memcheck,) = choose(["memcheck"])
    assert memcheck.run(context, 30.0).status == status


def test_the_sanitizer_says_in_whose_kernel(tmp_path):
    found = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at void tss::pack_gates_kernel<float>(tss::Scores)+0x1f0
=========     by thread (0,0,0) in block (0,0,0)
=========     at forward_kernel+0x40 in gated.py:12
1 calls ran
========= ERROR SUMMARY: 2 errors"""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{found}\nEND\nexit 86\n")
    tool.chmod(0o755)
    context = Context(
        sys.executable, "cuda", False, Report(tmp_path / "r.json"), {"tools": {"compute-sanitizer": str(tool)}}
    )
    (initcheck,) = choose(["initcheck"])
    outcome = initcheck.run(context, 30.0)
    assert outcome.status == "failed"
    assert outcome.result is not None
    assert outcome.result["kernels"] == {
        "void tss::pack_gates_kernel<float>(tss::Scores)": 1, "forward_kernel": 1
    }  # fmt: skip
    assert "1 in void tss::pack_gates_kernel<float>(tss::Scores)" in outcome.reason


def test_without_a_tool_or_a_package_a_part_says_so(context, monkeypatch):
    (memcheck,) = choose(["memcheck"])
    assert memcheck.run(context, 30.0) == Outcome(
        "skipped", "compute-sanitizer was not found, on the PATH or in CUDA's folders"
    )
    monkeypatch.setattr(all_parts.suite, "version", lambda package: None)
    (tests,) = choose(["tests.kernels"])
    outcome = tests.run(context, 30.0)
    assert (outcome.status, "pytest is not installed" in outcome.reason) == ("skipped", True)


def test_the_digest_follows_the_sources(monkeypatch, tmp_path):
    before = sources()
    assert sources() == before
    monkeypatch.setattr("bench.measure.revision.SOURCES", ("tss_kernels",))
    assert sources() != before


def gpu_sh(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(ROOT / "scripts" / "gpu.sh"), *arguments], capture_output=True, text=True,
        env=environment | {"PYTHON": sys.executable}, cwd="/",
    )  # fmt: skip


def test_a_dry_run_says_what_it_would_do(tmp_path):
    done = gpu_sh("--dry-run", "--parts", "tests,measure.adamw", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for said in (
        "Nothing is run",
        "tests.gpu",
        "test_streams.py",
        "3 M scores in 48 tensors",
        "AdamW fused + multiply",
    ):
        assert said in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_whole_command_on_a_cpu(tmp_path):
    done = gpu_sh("--device", "cpu", "--parts", "env,sanitize,measure.adamw", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = Path(tmp_path).glob("*-tiny-*.json")
    kept = json.loads(path.read_text())
    assert kept["machine"]["packages"]["torch"]
    adamw, sanitizer = kept["parts"]["measure.adamw"], kept["parts"]["sanitize.memcheck"]
    assert (adamw["status"], adamw["tiny"], sanitizer["status"]) == ("done", True, "skipped")
    assert {"revision", "uncommitted_changes", "sources", "started", "seconds"} <= set(adamw)
    assert "soft_masked_adamw_ update, two tensors" in done.stdout


def test_a_wrong_part_is_named(tmp_path):
    done = gpu_sh("--parts", "speed")
    assert done.returncode == 2
    assert "no part 'speed': there are env, build, tests.gpu" in done.stderr
