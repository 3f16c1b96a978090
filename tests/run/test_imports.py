"""Arrows point down between and inside the folders of runs, reports and commands."""

from __future__ import annotations

from pathlib import Path

import pytest

import tss
from tests.imports import check_no_circle, files_in, imported

PACKAGE = Path(tss.__file__).parent
BELOW = {
    "data": {"tasks"},
    "run": {"adapters", "data", "methods", "metrics", "presets", "tasks"},
    "serve": {"data", "run", "tasks", "adapters"},
    "report": {"adapters", "methods", "metrics", "run", "tasks"},
    "study": {"methods", "metrics", "presets", "report", "run"},
}


@pytest.mark.parametrize("folder", ["cli", "data", "report", "run", "serve", "study"])
def test_files_import_each_other_in_no_circle(folder):
    check_no_circle(files_in(PACKAGE / folder))


@pytest.mark.parametrize("folder", BELOW)
def test_folders_need_only_those_below(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        rooms = {name.split(".")[1] for name in imported(path) if name.count(".") >= 1}
        rooms = {room for room in rooms if (PACKAGE / room).is_dir()}
        assert rooms <= BELOW[folder] | {folder}, path
