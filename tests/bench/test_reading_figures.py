"""Figures show what was measured, leave out what failed, and are the same bytes for the same file."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from bench.reading.__main__ import main
from bench.reading.figures import curves, draw, draw_curves, time_label
from bench.reading.files import ROOT, load
from bench.reading.overview import overview
from bench.reading.style import drawing, looks
from tests.bench.reading_samples import case, cases_of, content, written

FACTORS = {"tss": 1.0, "ungated": 0.9, "eager": 1.5}


def lines_of(axes) -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn, by its colour."""
    return {line.get_color(): (list(line.get_xdata()), list(line.get_ydata()))
            for line in axes.get_lines() if line.get_marker() != "None"}  # fmt: skip


def test_a_curve_is_in_order_of_its_size_and_says_what_stays():
    points = [case("op", {"rows": rows, "out": 8}, FACTORS, rows, curve="rows") for rows in (512, 32, 128)]
    (curve,) = curves([*points, case("op", {"rows": 7, "out": 8}, FACTORS, 7)])
    assert [point["shape"]["rows"] for point in curve.points] == [32, 128, 512]
    assert (curve.key, curve.fixed) == ("rows", {"out": 8})


def test_where_a_size_is_met_twice_the_others_tell_curves_apart():
    points = [case("op", {"rows": rows, "out": out}, FACTORS, 1, curve="rows") for rows in (1, 2) for out in (8, 9)]
    assert [(curve.fixed, len(curve.points)) for curve in curves(points)] == [({"out": 8}, 2), ({"out": 9}, 2)]
    varying = [case("op", {"tasks": n, "bytes": 10 * n}, FACTORS, 1, curve="tasks") for n in (1, 10, 100)]
    assert [(curve.fixed, len(curve.points)) for curve in curves(varying)] == [({}, 3)]


def test_medians_and_ratios_are_drawn_as_measured_and_failures_are_gaps(tmp_path):
    made = content()
    records = [case("op", {"rows": rows}, FACTORS, rows * 3.0, curve="rows") for rows in (8, 64, 512)]
    failed = records[1]["variants"]["eager"] = records[1]["variants"]["eager"] | {"failed": "wrong"}
    made["parts"] = {"measure.op": {"result": {"cases": records}}}
    known = looks(records)
    with drawing():
        figure = draw_curves(curves(records), known, load(written(tmp_path, made)))
    times, ratios = (lines_of(axes) for axes in figure.axes)
    for name, look in known.items():
        sizes, medians = times[look.colour]
        assert sizes == [8, 64, 512]
        for record, median in zip(records, medians, strict=True):
            variant = record["variants"][name]
            assert median != median if variant is failed else median == variant["median_us"]
    _, medians = ratios[known["eager"].colour]
    expected = [record["variants"]["eager"]["ratio"]["median"] for record in records]
    assert [medians[0], medians[2]] == [expected[0], expected[2]]
    assert medians[1] != medians[1]
    assert known["tss"].colour not in ratios
    assert "Check FAILED, no time: eager at rows 64" in [text.get_text() for text in figure.texts]


def test_variants_that_are_compared_never_look_alike():
    names = ["tss", "tss, cuda", "ungated", "adapters removed", *(f"rival {n}" for n in range(8))]
    known = looks([case("op", {}, dict.fromkeys(names, 1.0), 1), case("op", {}, {"tss": 1.0, "other": 1.0}, 1)])
    seen = [known[name][:3] for name in names]
    assert len(set(seen)) == len(seen)
    assert known["other"][:3] in seen


def test_all_figures_of_a_file_are_the_same_bytes_again_in_another_process(tmp_path):
    file = written(tmp_path)
    paths = draw(load(file), tmp_path / "one")
    assert [path.name for path in paths] == [
        "scaling-gated-linear-cpu.svg", "scaling-soft-masked-adamw-cpu.svg", "overview-cpu.svg",
    ]  # fmt: skip
    command = [sys.executable, "-m", "bench.reading", "figures", str(file), "--out", str(tmp_path / "two")]
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    for path in paths:
        drawn = path.read_bytes()
        assert drawn == (tmp_path / "two" / path.name).read_bytes()
        assert re.search(rb"<dc:date>|matplotlib v", drawn, re.I) is None


def test_png_of_one_group(tmp_path, capsys):
    file = written(tmp_path)
    out = tmp_path / "images"
    assert main(["figures", str(file), "--out", str(out), "--format", "png", "--group", "step"]) == 0
    (path,) = out.iterdir()
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out == f"{path}\n"
    assert main(["figures", str(file), "--group", "nothing"]) == 2


def test_a_file_of_failures_has_figures_that_say_so(tmp_path):
    made = content()
    for group in ("gated_linear", "adamw", "scaling", "step"):
        for record in cases_of(made, group):
            for variant in record["variants"].values():
                variant["failed"] = "wrong"
    results = load(written(tmp_path, made))
    assert len(draw(results, tmp_path / "images")) == 3
    with drawing():
        figure = overview(results, looks([]))
    said = [text.get_text() for axes in figure.axes for text in axes.texts if "FAILED" in text.get_text()]
    assert any("tss at rows=512 in=1024 out=64" in text for text in said)


def test_nothing_measured_is_no_figure(tmp_path):
    assert draw(load(written(tmp_path, {"format": 1, "machine": {}, "parts": {}})), tmp_path / "images") == []


def test_bars_are_the_geometric_means_and_end_at_the_scales_end(tmp_path):
    made = content()
    records = [case("op", {"rows": rows}, {"tss": 1.0, "eager": 1.5, "slow": 30.0}, 1) for rows in (1, 2)]
    for record, ratio in zip(records, (1.0, 4.0), strict=True):
        record["variants"]["eager"]["ratio"] = {"median": ratio, "low": ratio, "high": ratio}
    made["parts"] = {"measure.op": {"result": {"cases": records}}}
    with drawing():
        figure = overview(load(written(tmp_path, made)), looks(records))
    (axes,) = figure.axes
    assert [round(1 + bar.get_width(), 6) for bar in axes.patches] == [2.0, 4.0]
    texts = [text.get_text() for text in axes.texts]
    assert "2.00  eager" in texts
    assert any(re.fullmatch(r"(29|30|31)\.\d  slow", text) for text in texts)


@pytest.mark.parametrize(("us", "text"), [(0.5, "500 ns"), (1, "1 us"), (20, "20 us"), (5e3, "5 ms"), (2e6, "2 s")])
def test_ticks_have_units(us, text):
    assert time_label(us) == text
