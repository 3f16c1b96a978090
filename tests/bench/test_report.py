"""The results' file is whole at any moment, and its table never shows a speed of what failed."""

from __future__ import annotations

import json

import pytest

from bench.measure.report import Report, failures_of, records_of, table


def test_parts_are_kept_when_others_are_written(tmp_path):
    path = tmp_path / "deep" / "results.json"
    Report(path).update("one", status="running")
    Report(path).replace("two", {"status": "done"})
    Report(path).update("one", status="done", result={"cases": []})
    Report(path).set_machine({"gpus": []})
    assert json.loads(path.read_text()) == {
        "format": 1, "machine": {"gpus": []},
        "parts": {"one": {"status": "done", "result": {"cases": []}}, "two": {"status": "done"}},
    }  # fmt: skip
    assert Report(path).part("three") == {}


def test_a_write_that_breaks_off_leaves_the_last_whole_file(tmp_path):
    report = Report(tmp_path / "results.json")
    report.update("one", status="done")
    before = report.path.read_text()
    with pytest.raises(TypeError):
        report.update("two", result={"a": [1, 2, object()]})
    assert report.path.read_text() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}'])
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"results\.json.*--out"):
        Report(path).update("one", status="done")
    assert path.read_text() == content


def timed(role: str, median: float) -> dict:
    return {"role": role, "median_us": median, "low_us": median, "high_us": median, "host_us": 1.0}


def content(**variants: dict) -> dict:
    case = {"operation": "op", "shape": {"rows": 3}, "variants": variants}
    return {"parts": {"measure.op": {"result": {"cases": [case]}}, "tests": {"result": None}, "env": {}}}


def test_table_shows_others_over_ours():
    shown = table(records_of(content(tss=timed("ours", 10), floor=timed("floor", 8), eager=timed("rival", 25))))
    assert "10.0" in shown
    assert "floor 0.80x" in shown
    assert "eager 2.50x" in shown


def test_table_shows_no_speed_of_what_failed():
    ours_failed = content(tss={"role": "ours", "failed": "wrong\nby far"}, eager=timed("rival", 25))
    shown = table(records_of(ours_failed))
    assert "FAILED" in shown
    assert "x" not in shown.splitlines()[1].replace("rows", "")
    assert failures_of(ours_failed) == ["op {'rows': 3}, tss: wrong"]
    rival_failed = content(tss=timed("ours", 10), eager={"role": "rival", "failed": "wrong"})
    assert "eager FAILED" in table(records_of(rival_failed))
