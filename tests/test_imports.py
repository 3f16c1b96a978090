"""The helper that other tests hold arrows down with sees a circle, however it is imported."""

from __future__ import annotations

import pytest

from tests.imports import check_no_circle


@pytest.mark.parametrize("line", ["from tss.pkg import {}", "from tss.pkg.{} import x", "import tss.pkg.{}"])
def test_a_circle_is_seen(line, tmp_path):
    files = {f"tss.pkg.{name}": tmp_path / f"{name}.py" for name in "abc"}
    for name, below in (("a", None), ("b", "a"), ("c", "b")):
        files[f"tss.pkg.{name}"].write_text("" if below is None else f"def f():\n    {line.format(below)}\n")
    check_no_circle(files)
    files["tss.pkg.a"].write_text(line.format("c"))
    with pytest.raises(AssertionError, match="import each other in a circle"):
        check_no_circle(files)
