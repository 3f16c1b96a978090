"""Two files side by side: only what lies beyond noise counts, failures are loud, unlike conditions are said."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure.report import Span
from bench.reading.__main__ import main
from bench.reading.compare import Comparison, compare, text, verdict
from bench.reading.files import load
from tests.bench.reading_samples import MACHINE, case, cases_of, content, written

FLIPPED = {"slower": "faster", "faster": "slower", "within noise": "within noise"}
positive = st.floats(1e-3, 1e9)
spans = st.tuples(positive, positive, positive).map(sorted).map(lambda v: Span(v[1], v[0], v[2]))


@given(spans, spans)
def test_the_other_way_round_the_verdict_is_the_opposite(one, other):
    assert verdict(one, other) == FLIPPED[verdict(other, one)]


@given(spans, spans, st.sampled_from([2.0**k for k in range(-20, 21)]))
def test_the_unit_does_not_matter(one, other, factor):
    def scaled(span: Span) -> Span:
        return Span(*(value * factor for value in span))

    assert verdict(scaled(one), scaled(other)) == verdict(one, other)


@given(spans, spans)
def test_a_verdict_is_given_only_where_no_value_is_in_both_ranges(one, other):
    shared = max(one.low, other.low) <= min(one.high, other.high)
    assert (verdict(one, other) == "within noise") == shared
    if not shared:
        assert verdict(one, other) == ("slower" if other.median > one.median else "faster")


@pytest.fixture
def files(tmp_path) -> tuple[dict, dict, Path]:
    """Two equal files' contents, to be changed, and where they go."""
    made = content()
    return made, copy.deepcopy(made), tmp_path


def compared(files, groups=()) -> Comparison:
    before, after, folder = files
    return compare(load(written(folder, before, "a.json")), load(written(folder, after, "b.json")), groups)


def slow_down(made: dict, group: str, number: int, name: str, factor: float) -> None:
    record = cases_of(made, group)[number]
    for key in ("median_us", "low_us", "high_us"):
        record["variants"][name][key] *= factor
    for other, variant in record["variants"].items():  # as turns would have measured it
        if "ratio" in variant and (name == "tss" or other == name):
            factor_here = 1 / factor if name == "tss" else factor
            variant["ratio"] = {key: value * factor_here for key, value in variant["ratio"].items()}


def status(files, *options: str) -> int:
    before, after, folder = files
    a, b = written(folder, before, "a.json"), written(folder, after, "b.json")
    return main(["compare", str(a), str(b), *options])


def test_equal_files_differ_in_nothing(files):
    found = compared(files)
    assert {change.time for change in found.changes if "skipped" not in change.before} == {"within noise"}
    assert [found.differences, found.slower(), found.only_before, found.only_after] == [[], [], [], []]
    assert "Ours nowhere slower beyond noise, by time." in text(found)
    assert status(files, "--fail-on-slower") == 0


def test_what_got_slower_is_named_with_both_times_and_the_quotient(files, capsys):
    slow_down(files[1], "adamw", 0, "tss", 2.0)
    (change,) = compared(files).slower()
    assert (change.name, change.time) == ("tss", "slower")
    assert status(files) == 0
    assert status(files, "--fail-on-slower") == 1
    shown = capsys.readouterr().out
    (line,) = {line for line in shown.splitlines() if " 2.00 " in line}
    times = [cases_of(made, "adamw")[0]["variants"]["tss"]["median_us"] / 1e3 for made in files[:2]]
    assert all(f"{value:.3g}" in line for value in times)
    assert "slower" in line


def test_a_slower_rival_and_a_faster_ours_fail_nothing(files):
    slow_down(files[1], "adamw", 0, "AdamW fused + multiply", 2.0)
    slow_down(files[1], "adamw", 1, "tss", 0.5)
    assert compared(files).slower() == []
    assert status(files, "--fail-on-slower") == 0


def test_a_little_slower_is_noise(files):
    slow_down(files[1], "adamw", 0, "tss", 1.01)
    assert compared(files).slower() == []


def test_what_fails_now_is_loud_and_counts_as_slower(files, capsys):
    cases_of(files[1], "gated_linear")[0]["variants"]["tss"] = {"role": "ours", "failed": "y: wrong\nby far"}
    assert status(files, "--fail-on-slower") == 1
    shown = capsys.readouterr().out
    assert "!!! FAILED IN B, timed in A (1):\n  gated_linear forward, rows=512 in=1024 out=64, float32: tss" in shown
    assert "FAILED NOW" in shown
    assert "FAILED: y: wrong" in shown
    before, after, folder = files
    assert status((after, before, folder), "--fail-on-slower") == 0  # what failed before and runs now


def test_what_only_one_file_has_is_listed(files):
    cases_of(files[0], "step").append(case("training step, old", {"batch": 1}, {"tss": 1.0}, 1.0))
    cases_of(files[1], "step").append(case("training step, new", {"batch": 1}, {"tss": 1.0}, 1.0))
    del cases_of(files[1], "adamw")[0]["variants"]["AdamW fused, no mask"]
    found = compared(files)
    assert found.only_before == [
        "soft_masked_adamw_ update, 3 M scores in 48 tensors, tensors=48 scores=3145728, float32: AdamW fused, no mask",
        "training step, old, batch=1, float32",
    ]
    assert found.only_after == ["training step, new, batch=1, float32"]
    assert "Only in B (1):\n  training step, new" in text(found)


def test_on_another_machine_only_ratios_count(files, capsys):
    files[1]["machine"] = MACHINE | {"name": "Other, 2 threads", "packages": {"torch": "2.14.0"}}
    for number in range(2):
        for name in ("tss", "AdamW fused, no mask", "AdamW fused + multiply"):
            variant = cases_of(files[1], "adamw")[number]["variants"][name]
            variant |= {key: variant[key] * 3 for key in ("median_us", "low_us", "high_us")}
    found = compared(files)
    assert found.differences == [
        "machine: Test Processor -> Other", "torch: 2.13.0 -> 2.14.0", "triton: 3.9.0 -> unknown"
    ]  # fmt: skip
    assert found.slower() == []
    shown = text(found)
    assert "Times are NOT comparable, only ratios are" in shown
    assert "not comparable" in shown
    assert status(files, "--fail-on-slower") == 0
    slow_down(files[1], "adamw", 0, "tss", 2.0)
    assert {change.name for change in compared(files).slower()} == {"AdamW fused, no mask", "AdamW fused + multiply"}
    assert status(files, "--fail-on-slower") == 1


def test_other_numbers_of_threads_are_a_difference_not_other_cases(files):
    for records in load(written(files[2], files[1])).groups.values():
        assert records
    for part in files[1]["parts"].values():
        for record in (part.get("result") or {}).get("cases", []):
            record["threads"] = 1
    found = compared(files)
    assert found.differences == ["threads: 2 threads -> 1 thread"]
    assert found.changes
    assert not found.only_before


def test_cases_of_several_numbers_of_threads_are_told_apart(files):
    for made, factor in zip(files[:2], (1.0, 5.0), strict=True):
        twin = copy.deepcopy(cases_of(made, "adamw")[0]) | {"threads": 1}
        for variant in twin["variants"].values():
            variant |= {key: variant[key] * factor for key in ("median_us", "low_us", "high_us")}
        cases_of(made, "adamw").append(twin)
    (change,) = compared(files).slower()
    assert change.old["threads"] == 1


def test_ratios_to_different_variants_of_ours_are_not_compared(files):
    variants = cases_of(files[1], "adamw")[0]["variants"]
    cases_of(files[1], "adamw")[0]["variants"] = {"tss, new": variants.pop("tss"), **variants}
    found = [change for change in compared(files, ["adamw"]).changes if "in 48 tensors" in str(change)]
    assert found
    assert all(change.ratio is None for change in found)


def test_the_machines_own_speed_is_said(files):
    files[1]["parts"]["measure.ceilings"]["result"]["bytes_per_second"] /= 2
    assert "The machine's own ceilings, B/A: copies 0.50, float32 products 1.00." in text(compared(files))


def test_tiny_sizes_are_another_condition_and_measure_no_ceiling(files):
    for part in files[1]["parts"].values():
        part["tiny"] = True
    found = compared(files)
    assert found.differences == ["sizes: published -> tiny"]
    assert "own ceilings" not in text(found)
    assert "not comparable" in text(found)


def test_a_group_may_be_in_one_file_alone_but_not_in_none(files, capsys):
    del files[1]["parts"]["measure.step"]
    assert compared(files, ["step"]).only_before == ["training step, embedded, batch=16 source=64, float32"]
    assert status(files, "--group", "nothing") == 2
    assert "no group nothing" in capsys.readouterr().err
