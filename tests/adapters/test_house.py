"""Arrows point down inside the folder too: no file needs one that needs it."""

from __future__ import annotations

import ast
from pathlib import Path

import tss.adapters

FOLDER = Path(tss.adapters.__file__).parent


def imported(path):
    """Files of the folder that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tss.adapters"):
            rest = node.module.removeprefix("tss.adapters").strip(".")
            names |= {rest} if rest else {alias.name for alias in node.names}
    return names & {other.stem for other in FOLDER.glob("*.py")}


def test_imports_have_no_circle():
    needs = {path.stem: imported(path) for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    placed: set[str] = set()
    while needs:
        ready = {name for name, below in needs.items() if below <= placed}
        assert ready, f"these import each other in a circle: {sorted(needs)}"
        placed |= ready
        needs = {name: below for name, below in needs.items() if name not in ready}


def test_the_store_knows_no_model():
    assert imported(FOLDER / "task_store.py") == {"storage"}
    assert "transformers" not in (FOLDER / "task_store.py").read_text()
