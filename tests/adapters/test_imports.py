"""Arrows point down inside the folder too: no file needs one that needs it."""

from __future__ import annotations

from pathlib import Path

import tss.adapters
from tests.imports import check_no_circle, files_in, imported

FILES = files_in(Path(tss.adapters.__file__).parent)


def test_imports_have_no_circle():
    check_no_circle(FILES)


def test_the_store_knows_no_model():
    store = FILES["tss.adapters.task_store"]
    assert imported(store) & set(FILES) == {f"tss.adapters.{name}" for name in ("storage", "sealed_task", "task_cache")}
    assert "transformers" not in store.read_text()
