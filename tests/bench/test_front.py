"""`pytest bench/ --benchmark` as a user calls it, at tiny sizes, and pytest-benchmark's own options on top."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from bench.conftest import _obstacle
from bench.core.machine import ROOT

pytest.importorskip("pytest_benchmark")
UNPACK = ("--benchmark", "--benchmark-tiny", "-k", "[gates: and unpack")


def pytest_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_", "TSS_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "bench/", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
        cwd=ROOT, env=kept | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def test_without_the_flag_everything_is_skipped_and_says_so():
    done = pytest_bench("-rs")
    assert done.returncode == 0, done.stdout
    assert "nothing was timed; add --benchmark" in done.stdout
    assert "1 skipped" in done.stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("front") / "first.json"
    done = pytest_bench(*UNPACK, f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def test_the_file_is_pytest_benchmarks_with_ratios_checks_and_load(file):
    content = json.loads(file.read_text())
    entries = {entry["name"]: entry for entry in content["benchmarks"]}
    assert {"tss", "eager"} <= set(entries)
    for name, entry in entries.items():
        info = entry["extra_info"]
        assert info["checked"].startswith("float64")
        assert info["percentiles_us"][0] <= entry["stats"]["median"] * 1e6 <= info["percentiles_us"][1]
        assert ("ratio" in info) == (name != "tss")
        assert {"load", "spread", "busy"} <= set(info)
        assert entry["stats"]["rounds"] >= 2
    assert {"sources"} <= set(content["commit_info"])
    assert content["machine_info"]["tss"]["device"] == "cpu"
    assert (content["tss"]["tiny"], content["tss"]["failed"]) == (True, [])


def test_two_runs_are_compared_side_by_side(file):
    done = pytest_bench(*UNPACK, f"--benchmark-compare={file}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(NOW)" in done.stdout
    _, _, below = done.stdout.rpartition("Legend:")
    assert "numbers are shown and not kept" in below


def test_a_comparison_without_a_common_case_fails(file):
    other = ("--benchmark", "--benchmark-tiny", "-k", "[importance: and accumulate")
    done = pytest_bench(*other, f"--benchmark-compare={file}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no case of this run is in" in done.stdout
    assert str(file) in done.stdout


def test_a_failed_check_fails_its_test_and_shows_no_time(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(
        "import functools, tss_kernels\n"
        "right = tss_kernels.unpack_gates\n"
        "tss_kernels.unpack_gates = functools.wraps(right)(lambda *given: ~right(*given))\n"
    )
    out = tmp_path / "out.json"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = pytest_bench(*UNPACK, f"--benchmark-json={out}", "-p", "broken")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "tss: gates: not equal" in done.stdout
    content = json.loads(out.read_text())
    assert {entry["name"] for entry in content["benchmarks"]} == {"eager"}
    assert "ratio" not in content["benchmarks"][0]["extra_info"]
    assert all("gates: not equal" in line for line in content["tss"]["failed"])


def test_when_the_time_is_up_no_case_begins():
    done = pytest_bench(*UNPACK, "--benchmark-stop-after", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout


class Options:
    """What a call gave, as pytest's config answers."""

    def __init__(self, **given: object) -> None:
        self.given = {f"--benchmark-{name}": value for name, value in given.items()}

    def getoption(self, name: str, default: object = None) -> object:
        return self.given.get(name, self.given.get(f"--benchmark-{name}", default))


NONSENSE = {
    "seconds": (float("nan"), "--benchmark-seconds must be a number of seconds, 0 or more, but is nan"),
    "threads": (0, "--benchmark-threads must be 1 to "),
    "device": ("cuda", "PyTorch finds no GPU"),
    "numprocesses": (2, "benchmarks run one at a time: omit -n"),
}


@pytest.mark.parametrize(("name", "value", "says"), [(name, *rest) for name, rest in NONSENSE.items()], ids=NONSENSE)
def test_nonsense_is_refused_before_anything_runs(name, value, says):
    if name == "device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert says in (_obstacle(Options(**{name: value})) or "")  # type: ignore[arg-type]
    assert _obstacle(Options(seconds=0.0, threads=1, device="cpu")) is None  # type: ignore[arg-type]


def test_a_refusal_is_a_usage_error_once():
    done = pytest_bench("--benchmark", "--benchmark-tiny", "--benchmark-seconds", "-1")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert (done.stdout + done.stderr).count("--benchmark-seconds must be") == 1
