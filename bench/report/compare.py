"""Two result files side by side, by pytest-benchmark's own comparison."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.report.results import Results, Unreadable, load


def _titles(results: Results) -> set[str]:
    return {entry["fullname"] for entry in results.content["benchmarks"]}


def differences(old: Results, new: Results) -> list[str]:
    """Return what makes the times of two files hard to compare, one line each; ratios only depend on their own file."""
    lines = [f"{results.path}: {results.busy()}" for results in (old, new) if results.busy()]
    for what in ("processor", "device", "threads", "packages"):
        before, after = old.machine[what], new.machine[what]
        if before != after:
            lines.append(f"{what}: {before} -> {after}")
    return lines


def compare(old: Path, new: Path) -> int:
    """Print the times of all cases that both files have, and what else differs. Raises Unreadable if there is none."""
    before, after = load(old), load(new)
    if not _titles(before) & _titles(after):
        raise Unreadable(f"{old} and {new} have no case in common, so there is nothing to compare: measure one again")
    print(*differences(before, after), sep="\n")
    columns = ["--columns=min,median,max,rounds", "--group-by=fullname", "--sort=name"]
    command = [sys.executable, "-m", "pytest_benchmark", "compare", *columns, str(old), str(new)]
    return subprocess.run(command, check=False).returncode
