"""Arrows point down between and inside the folders of runs, reports and commands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tss

PACKAGE = Path(tss.__file__).parent
BELOW = {
    "data": {"tasks"},
    "run": {"adapters", "data", "methods", "metrics", "tasks"},
    "report": {"adapters", "metrics", "run", "tasks"},
    "study": {"methods", "metrics", "report", "run"},
}


def imported(path):
    """Modules of tss that a file imports, anywhere in it: "tss.run.config", and names taken from a package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tss":
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", ["cli", "data", "report", "run", "study"])
def test_files_import_each_other_in_no_circle(folder):
    files = {f"tss.{folder}.{path.stem}": path for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"}
    needs = {name: imported(path) & set(files) for name, path in files.items()}
    placed: set[str] = set()
    while needs:
        ready = {name for name, below in needs.items() if below <= placed}
        assert ready, f"these import each other in a circle: {sorted(needs)}"
        placed |= ready
        needs = {name: below for name, below in needs.items() if name not in ready}


@pytest.mark.parametrize("folder", BELOW)
def test_folders_need_only_those_below(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        rooms = {name.split(".")[1] for name in imported(path) if name.count(".") >= 1}
        rooms = {room for room in rooms if (PACKAGE / room).is_dir()}
        assert rooms <= BELOW[folder] | {folder}, path
