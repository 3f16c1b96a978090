"""A pytest plugin (`-p bench.gpu.progress`) that writes one JSON line a test at once: a stopped run is known."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "BENCH_GPU_PROGRESS"


def _write(test: str, outcome: str, reason: str) -> None:
    path = os.environ.get(VARIABLE)
    # With xdist every report also reaches the main process, which is the one that writes.
    if path and "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(path).open("a") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "reason": reason}) + "\n")


def _reason(report: Any) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    lines = [line for line in str(report.longrepr or "").splitlines() if line.startswith("E ")]
    return lines[0].removeprefix("E").strip() if lines else str(report.longrepr or "")[-300:]


def pytest_runtest_logreport(report: Any) -> None:
    """The call of every test, and whatever else did not pass."""
    if report.when == "call" or report.outcome != "passed":
        _write(report.nodeid, report.outcome, _reason(report))


def pytest_collectreport(report: Any) -> None:
    """Files that cannot be collected."""
    if report.outcome != "passed":
        _write(report.nodeid, report.outcome, _reason(report))
