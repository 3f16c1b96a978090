"""Tables of result files: what stands in them is what was measured, and of what failed there is no speed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure.report import Span, bytes_text, ratio_of, time_texts
from bench.reading.__main__ import main
from bench.reading.files import Results, conditions, is_gpu, load
from bench.reading.summaries import summarise, summary_table, targets_table
from bench.reading.tables import conditions_text, tables
from tests.bench.reading_samples import MACHINE, case, cases_of, content, timed, written

UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}
H200 = {"name": "NVIDIA H200", "gpus": [{"name": "NVIDIA H200"}]}


def read(tmp_path, made: dict | None = None, name: str = "cpu-2026-01-31.json") -> Results:
    return load(written(tmp_path, made, name))


def lines_with(text: str, word: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.replace("\\|", "!").strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ") and word in line
    ]


LAYER = "layer forward, gates fixed"


def one_case(*variants: tuple[str, dict], **more) -> dict:
    record = case("gated_linear forward", {"rows": 512}, {"tss": 1.0}, 100.0, **more)
    record["variants"] = dict(variants)
    return {"format": 1, "machine": MACHINE, "parts": {"measure.gated_linear": {"result": {"cases": [record]}}}}


@given(st.floats(1.0, 9e8))
def test_a_time_keeps_three_digits_in_its_unit(us):
    number, unit = time_texts(Span(us, us, us))[0].split()
    assert float(number) * UNITS[unit] == pytest.approx(us, rel=6e-3)
    assert 1 <= float(number) <= 1000


def test_bytes_have_a_unit():
    assert [bytes_text(count) for count in (None, 0, 1000, 2048, 3 * 2**20, 5 * 2**30)] == [
        "-", "0 B", "1000 B", "2.00 KiB", "3.00 MiB", "5.00 GiB",
    ]  # fmt: skip


def test_one_line_a_case_with_time_spread_share_and_every_ratio(tmp_path):
    made = one_case(
        ("tss", timed("ours", 1234.0, peak_bytes=3 * 2**20, roofline_share=0.42, checked="float64")),
        ("ungated", timed("floor", 1200.0, 0.97)), ("eager", timed("rival", 2000.0, 1.62)),
    )  # fmt: skip
    shown = tables(read(tmp_path, made))
    (head,) = lines_with(shown, "operation")
    (line,) = lines_with(shown, "rows=512")
    assert dict(zip(head, line, strict=True)) == {
        "operation": "gated_linear forward", "shape": "rows=512", "ours": "1.23 ms", "10-90 %": "1.17-1.30",
        "ungated": "0.97 (0.92-1.02)", "eager": "1.62 (1.54-1.70)",
    }  # fmt: skip
    assert "All float32; 2 threads; of ceiling 42%; peak memory 3.00 MiB; checked: float64." in shown
    assert "Floors, which compute less or something else, and are not checked: ungated (it computes less)." in shown


def test_what_differs_from_case_to_case_has_a_column(tmp_path):
    made = one_case(("tss", timed("ours", 10.0, checked="float64")))
    other = case("gated_linear forward", {"rows": 2048}, {"tss": 1.0}, 50.0, dtype="bfloat16", threads=1)
    other["variants"]["tss"]["checked"] = "bit for bit"
    cases_of(made, "gated_linear").append(other)
    (line,) = lines_with(tables(read(tmp_path, made)), "rows=2048")
    assert {"bfloat16", "1", "bit for bit"} <= set(line)


def test_what_failed_has_its_reason_and_no_speed(tmp_path):
    stale = timed("ours", 123.0, roofline_share=0.5) | {"failed": "y: the error | is large\nand more"}
    shown = tables(read(tmp_path, one_case(("tss", stale), ("eager", timed("rival", 456.0, 3.7)))))
    (line,) = lines_with(shown, "rows=512")
    assert "FAILED: y: the error ! is large" in line
    assert not any(speed in shown.partition("###")[2] for speed in ("123", "456", "3.7", "50%"))
    rival = timed("rival", 456.0, 3.7) | {"failed": "ValueError"}
    shown = tables(read(tmp_path, one_case(("tss", timed("ours", 123.0)), ("eager", rival))))
    (line,) = lines_with(shown, "rows=512")
    assert "FAILED: ValueError" in line
    assert "123 us" in line
    assert "3.7" not in shown


def test_all_lines_of_a_table_have_as_many_cells(tmp_path):
    made = content()
    cases_of(made, "gated_linear")[2]["variants"]["eager"] = {"role": "rival", "failed": "a | b\nc"}
    for block in tables(read(tmp_path, made)).split("\n\n"):
        counts = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(counts) <= 1, block


def test_what_was_left_out_is_said_with_its_reason(tmp_path):
    made = content()
    assert "Left out: `tss, triton` (no GPU here)." in tables(read(tmp_path, made), ["step"])
    cases_of(made, "step").append(case("training step", {"batch": 2}, {"tss": 1.0, "eager": None}, 9.0))
    said = "Left out: `tss, triton` in 1 of 2 and `eager` in 1 of 2 (no GPU here)."
    assert said in tables(read(tmp_path, made), ["step"])


def test_candidates_of_dispatch_are_shown_only_when_asked_for(tmp_path):
    assert "dispatch" not in tables(read(tmp_path))
    assert "dispatch: gated_linear" in tables(read(tmp_path), ["dispatch"])


def test_curves_of_different_operations_have_tables_of_their_own(tmp_path):
    heads = lines_with(tables(read(tmp_path), ["scaling"]), "operation")
    assert [{"eager", "AdamW fused + multiply"} & set(head) for head in heads] == [
        {"eager"},
        {"AdamW fused + multiply"},
    ]


def test_a_ratio_below_its_target_says_so(tmp_path):
    def cell(ratio: float, **machine) -> str:
        made = one_case(("tss", timed("ours", 10.0)), ("ungated", timed("floor", 9.0, ratio, 0.0)))
        made["machine"] = MACHINE | machine
        if not machine:  # what a CPU's target is set for
            cases_of(made, "gated_linear")[0]["operation"] = LAYER
        (line,) = lines_with(tables(read(tmp_path, made)), "rows=512")
        return line[4]

    assert cell(0.95) == "0.95 (0.95-0.95), misses 0.952"
    assert cell(0.96) == "0.96 (0.96-0.96)"
    assert "misses" in cell(0.95, **H200)


def test_without_turns_a_ratio_is_as_wide_as_the_percentiles_allow():
    variants = {"tss": timed("ours", 10.0, spread=0.1), "eager": timed("rival", 20.0, spread=0.1)}
    assert ratio_of({"variants": variants}, "eager") == pytest.approx((2.0, 18 / 11, 22 / 9))
    assert ratio_of({"variants": variants}, "tss") is None


def test_a_summary_has_the_geometric_mean_and_the_extremes(tmp_path):
    made = one_case(("tss", timed("ours", 10.0)), ("eager", timed("rival", 9.0, 1.0)))
    for ratio in (2.0, 4.0):
        other = one_case(("tss", timed("ours", 10.0)), ("eager", timed("rival", 9.0, ratio)))
        cases_of(made, "gated_linear").extend(cases_of(other, "gated_linear"))
    failed = one_case(("tss", {"role": "ours", "failed": "wrong"}), ("eager", timed("rival", 9.0, 64.0)))
    cases_of(made, "gated_linear").extend(cases_of(failed, "gated_linear"))
    results = read(tmp_path, made)
    ((summary,),) = [line.summaries for line in summarise(results)]
    assert summary.ratio == pytest.approx((math.pow(8, 1 / 3), 1.0, 4.0))
    (line,) = lines_with(summary_table(results), "gated_linear")
    assert line[:4] == ["gated_linear forward", "4", "-", "eager **2.00** (1.00-4.00)"]


def test_a_summary_says_what_failed_and_leaves_it_out(tmp_path):
    made = content()
    cases_of(made, "gated_linear")[0]["variants"]["tss"] = {"role": "ours", "failed": "wrong"}
    (line,) = [line for line in lines_with(summary_table(read(tmp_path, made)), "gated_linear") if "FAILED" in line[-1]]
    assert line[1] == "4"  # in one of which only others were timed
    assert line[-1] == "FAILED: tss at rows=512 in=1024 out=64"
    (line,) = [one for one in summarise(read(tmp_path, made)) if one.operation == "gated_linear forward"]
    assert {one.cases for one in line.summaries} == {3}


def test_an_optimizers_scores_are_a_size_and_element_types_are_told_apart(tmp_path):
    made = content()
    cases_of(made, "step").append(case("training step, embedded", {"batch": 1}, {"tss": 1.0, "eager": 1.0}, 9.0,
                                       dtype="bfloat16"))  # fmt: skip
    lines = summarise(read(tmp_path, made))
    titles = [line.title(lines) for line in lines]
    assert titles.count("soft_masked_adamw_ update") == 1
    assert {"training step, embedded, float32", "training step, embedded, bfloat16"} <= set(titles)


def test_targets_are_met_missed_or_neither(tmp_path):
    def verdict(*ratios: float | None) -> str:
        made = one_case()
        cases_of(made, "gated_linear").clear()
        for ratio in ratios:
            floor = {"role": "floor", "failed": "wrong"} if ratio is None else timed("floor", 9.0, ratio)
            other = one_case(("tss", timed("ours", 10.0)), ("ungated", floor))
            cases_of(other, "gated_linear")[0]["operation"] = LAYER
            cases_of(made, "gated_linear").extend(cases_of(other, "gated_linear"))
        return lines_with(targets_table(read(tmp_path, made)), "ungated layer")[0][4]

    assert verdict(0.96, 0.97) == "**met**: 2 of 2"
    assert verdict(0.96, 0.9) == "partly: 1 of 2"
    assert verdict(0.9) == "missed: 0 of 1"
    assert verdict() == "not measured"
    assert verdict(0.96, None) == "partly: 1 of 1, 1 FAILED their check"


def test_targets_of_gpus_count_shares_of_the_ceiling(tmp_path):
    made = one_case(("tss", timed("ours", 10.0, roofline_share=0.85)))
    (record,) = cases_of(made, "gated_linear")
    record |= {"operation": "gated_adapter forward+backward", "shape": {"rows": 65536}}
    made["machine"] = MACHINE | H200
    (line,) = lines_with(targets_table(read(tmp_path, made)), "of the ceiling")
    assert line[3:] == ["0.8", "**met**: 1 of 1", "0.85 (gated_adapter forward+backward, rows=65536)"]


def test_conditions_name_machine_threads_versions_date_and_commit(tmp_path):
    text = conditions_text(read(tmp_path))
    assert text.startswith(
        "Test Processor, 2 threads, Python 3.11.4, torch 2.13.0, Triton 3.9.0, 2026-01-31, commit 012345678 ("
    )
    assert "copies 20.0 GB/s, float32 products 150 GFLOP/s" in text
    made = content()
    made["machine"] = {"gpus": [{"name": "NVIDIA H200"}]}
    at = conditions(read(tmp_path, made, "undated.json"))
    assert (at.machine, at.threads, at.torch, at.date) == ("NVIDIA H200", "", "", "")


def test_parts_of_several_days_and_revisions_are_said_to_be(tmp_path):
    made = content()
    made["parts"]["measure.adamw"] |= {
        "date": "2026-01-30",
        "revision": "fedcba9876543210",
        "uncommitted_changes": True,
    }
    made["parts"]["measure.step"] |= {"date": "2026-02-02", "uncommitted_changes": False}
    at = conditions(read(tmp_path, made, "undated.json"))
    assert (at.date, at.commit) == ("2026-01-30 to 2026-02-02", "012345678, fedcba987+")


def test_a_processor_beside_a_gpu_is_no_gpu(tmp_path):
    made = content()
    assert not is_gpu(read(tmp_path, made))
    made["machine"] = MACHINE | {"gpus": H200["gpus"]}
    assert not is_gpu(read(tmp_path, made))
    made["machine"] = MACHINE | H200
    assert is_gpu(read(tmp_path, made))
    made["machine"] = {"processor": "Some CPU", "gpus": H200["gpus"], "device": "cpu"}
    assert (is_gpu(read(tmp_path, made)), conditions(read(tmp_path, made)).machine) == (False, "Some CPU")
    made["machine"]["device"] = "cuda"
    assert (is_gpu(read(tmp_path, made)), conditions(read(tmp_path, made)).machine) == (True, "NVIDIA H200")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 99}', '{"format": 1, "machine": {}}', '{"format": 1, "parts": []}', b"\xff\xfe",
             '{"format": 1, "machine": {}, "parts": {"a": {"result": {"cases": [{"operation": "x"}]}}}}',
             '{"format": 1, "parts": {}}', '{"format": 1, "machine": null, "parts": {}}',
             '{"format": 1, "machine": {"packages": []  , "name": "x"}, "parts": {"a": 5}}',
             '{"format": 1, "machine": {"packages": ["torch"]}, "parts": {}}',
             '{"format": 1, "machine": {}, "parts": {"measure.a": {"result": {"cases": [{"operation": "x", "shape": 5, '
             '"variants": {}}]}}}}',
             '{"format": 1, "machine": {}, "parts": {"measure.a": {"result": {"cases": [{"operation": "x", "shape": {},'
             ' "variants": {"tss": {"median_us": "fast"}}}]}}}}'],
)  # fmt: skip
def test_another_kind_of_file_is_refused_in_one_line(tmp_path, capsys, text):
    path = tmp_path / "some.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["table", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(str(path))
    assert line.endswith("name a file that `python -m bench.measure` wrote")


def test_a_file_that_is_not_there_and_a_group_that_is_not_in_it(tmp_path, capsys):
    assert main(["table", str(tmp_path / "none.json")]) == 2
    assert "none.json is no file: name a file" in capsys.readouterr().err
    path = written(tmp_path)
    assert main(["table", str(path), "--group", "nothing"]) == 2
    assert "no group nothing: it has gated_linear, adamw, scaling, step, dispatch" in capsys.readouterr().err
    assert main(["table", str(path), "--group", "adamw"]) == 0
    assert "### adamw" in capsys.readouterr().out
