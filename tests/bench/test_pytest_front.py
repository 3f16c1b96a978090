"""`pytest bench/ --benchmark` as a user calls it, at tiny sizes, and pytest-benchmark's own options on top."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from bench.conftest import Replay, _obstacle
from bench.measure.revision import ROOT

pytest.importorskip("pytest_benchmark")


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
    assert "pytest bench/ --benchmark" in done.stdout
    assert "1 skipped" in done.stdout


def test_the_numbers_are_ours_in_both_files_and_two_runs_can_be_compared(tmp_path):
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    options = ("--benchmark", "--benchmark-tiny", "-k", "gates: and unpack", "--benchmark-out", str(ours))
    first = pytest_bench(*options, f"--benchmark-json={theirs}")
    assert first.returncode == 0, first.stdout + first.stderr
    part = json.loads(ours.read_text())["parts"]["measure.gates"]
    (case,) = part["result"]["cases"]
    assert {"revision", "sources", "date"} <= set(part)
    assert case["variants"]["eager"]["ratio"]["low"] <= case["variants"]["eager"]["ratio"]["high"]
    shown = {one["name"].rpartition(": ")[2].rstrip("]"): one for one in json.loads(theirs.read_text())["benchmarks"]}
    assert set(shown) == {"tss", "tss, reference", "eager"}
    for name, one in shown.items():
        record = case["variants"][name]
        assert one["stats"]["median"] * 1e6 == pytest.approx(record["median_us"], abs=2e-3)
        assert one["stats"]["rounds"] == record["repeats"]
        assert one["extra_info"]["checked"] == record["checked"]
    second = pytest_bench(*options, f"--benchmark-compare={theirs}")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "(NOW)" in second.stdout
    assert json.loads(ours.read_text())["machine"]["device"] == "cpu"


def test_a_failed_check_fails_its_test_and_shows_no_time(tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import tss_kernels.gates.reference as reference, tss_kernels.gates.native as native\n"
        "for one in (reference, native):\n"
        "    one.unpack_gates = (lambda right: lambda *given: ~right(*given))(one.unpack_gates)\n"
    )
    out = tmp_path / "out.json"
    options = ("--benchmark", "--benchmark-tiny", "-k", "gates: and unpack", f"--benchmark-out={out}", "-p", "broken")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = pytest_bench(*options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "gates: not equal" in done.stdout
    variants = json.loads(out.read_text())["parts"]["measure.gates"]["result"]["cases"][0]["variants"]
    assert "failed" in variants["tss"]
    assert "median_us" not in variants["tss"]
    assert "median_us" in variants["eager"]
    assert "ratio" not in variants["eager"]


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
    "out": (ROOT, "is a folder: name a file in it"),
    "numprocesses": (2, "benchmarks run one at a time: leave -n out"),
}


@pytest.mark.parametrize(("name", "value", "says"), [(name, *rest) for name, rest in NONSENSE.items()], ids=NONSENSE)
def test_nonsense_is_refused_before_anything_runs(name, value, says):
    if name == "device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert says in (_obstacle(Options(**{name: value})) or "")  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    said = _obstacle(Options(out=tmp_path / "new" / "file.json"))  # type: ignore[arg-type]
    assert said == f"results cannot be written to {tmp_path / 'new'}: name a file elsewhere with --benchmark-out"


def test_a_refusal_is_a_usage_error_once():
    done = pytest_bench("--benchmark", "--benchmark-tiny", "--benchmark-seconds", "-1")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert (done.stdout + done.stderr).count("--benchmark-seconds must be") == 1


def test_what_can_run_is_not_refused(tmp_path):
    assert _obstacle(Options(seconds=0.0, threads=1, device="cpu", out=tmp_path / "a.json")) is None  # type: ignore[arg-type]
    assert _obstacle(Options()) is None  # type: ignore[arg-type]


def test_the_clock_shows_what_was_measured():
    clock = Replay()
    clock.load([0.5, 0.25])
    readings = [clock() for _ in range(4)]
    assert [readings[1] - readings[0], readings[3] - readings[2]] == [0.5, 0.25]
