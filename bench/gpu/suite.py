"""The test suite as a part: which files can run here, the command, and what came of it."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.processes import Finished
from bench.measure.environment import version

WORKERS = 8
OWN = ("tss", "tss_kernels", "bench", "tests")


def _imported(file: Path) -> set[str]:
    """The packages that a file imports at its top, without which it cannot be collected."""
    names: set[str] = set()
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            names.add(statement.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(OWN)


def cannot_run(folder: Path, search: Sequence[str] = ()) -> dict[Path, str]:
    """Test files whose imports are not installed here (or in the folders of `search`), and the first that is missing.

    Files that skip themselves with pytest.importorskip run.
    """

    def there(name: str) -> bool:
        return importlib.util.find_spec(name) is not None or any(
            (Path(place) / name).exists() or (Path(place) / f"{name}.py").exists() for place in search
        )

    missing = {}
    for file in sorted(folder.rglob("test_*.py")):
        text = file.read_text()
        lacking = [name for name in sorted(_imported(file)) if not there(name) and f'importorskip("{name}"' not in text]
        if lacking:
            missing[file] = lacking[0]
    return missing


def command(python: str, folder: Path, ignored: Sequence[Path], parallel: bool) -> list[str]:
    """pytest on a folder, side by side where xdist is installed and the tests allow it."""
    workers = min(WORKERS, os.cpu_count() or 1)
    side_by_side = ["-n", str(workers)] if parallel and workers > 1 and version("pytest-xdist") else []
    skipped = [f"--ignore={path}" for path in ignored]
    return [
        python, "-m", "pytest", str(folder), "-p", "bench.gpu.progress", "-p", "no:cacheprovider",
        *side_by_side, *skipped,
    ]  # fmt: skip


def result(progress: Path, finished: Finished, missing: dict[Path, str]) -> tuple[str, str, dict[str, Any]]:
    """Status, reason and numbers out of what the plugin wrote."""
    lines = [json.loads(line) for line in progress.read_text().splitlines()] if progress.exists() else []
    failed = {line["test"]: line["reason"] for line in lines if line["outcome"] == "failed"}
    skipped = Counter(line["reason"] for line in lines if line["outcome"] == "skipped")
    numbers: dict[str, Any] = {
        "passed": sum(line["outcome"] == "passed" and line["test"] not in failed for line in lines),
        "failed": failed,
        "skipped": dict(skipped.most_common()),
        "not_collected": {path.name: f"the package {name} is not installed" for path, name in missing.items()},
    }
    said = f"{numbers['passed']} passed, {len(failed)} failed, {sum(skipped.values())} skipped"
    if missing:
        said += f", {len(missing)} files not collected ({', '.join(sorted(set(missing.values())))} not installed)"
    if finished.code is None:
        return "stopped", f"{said}; stopped at its time limit", numbers
    if failed:
        return "failed", said, numbers
    if finished.code != 0 and not (finished.code == 5 and not lines):
        return "failed", f"{said}; pytest ended with {finished.code}: {finished.tail(3)}", numbers
    return "done", said, numbers
