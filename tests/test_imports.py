"""The helper that other tests hold arrows down with sees a circle, however it is imported."""

from __future__ import annotations

import pytest

from tests.imports import check_no_circle


@pytest.mark.parametrize("line", ["from tss.package import {}", "from tss.package.{} import x", "import tss.package.{}"])
def test_a_circle_is_seen(line, tmp_path):
    files = {f"tss.package.{name}": tmp_path / f"{name}.py" for name in "abc"}
    for name, below in (("a", None), ("b", "a"), ("c", "b")):
        files[f"tss.package.{name}"].write_text("" if below is None else f"def f():\n    {line.format(below)}\n")
    check_no_circle(files)
    files["tss.package.a"].write_text(line.format("c"))
    with pytest.raises(AssertionError, match="import each other in a circle"):
        check_no_circle(files)
