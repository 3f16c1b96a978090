"""Imports of files, for tests of the dependencies between packages."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path


def imported(path: Path) -> set[str]:
    """Modules of tss that a file imports, anywhere in it: "tss.run.config", and names taken from a package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tss":
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "tss"}
    return names


def files_in(folder: Path) -> dict[str, Path]:
    """Module name -> file, for the files of one folder of tss."""
    return {f"tss.{folder.name}.{path.stem}": path for path in folder.glob("*.py") if path.stem != "__init__"}


def check_no_circle(files: Mapping[str, Path]) -> None:
    """Fail if some of these files import each other in a circle."""
    needs = {name: imported(path) & set(files) for name, path in files.items()}
    placed: set[str] = set()
    while needs:
        ready = {name for name, below in needs.items() if below <= placed}
        assert ready, f"these import each other in a circle: {sorted(needs)}"
        placed |= ready
        needs = {name: below for name, below in needs.items() if name not in ready}
