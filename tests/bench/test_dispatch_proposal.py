"""From timings of both strategies to entries of the configuration table."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")

from bench.measure.__main__ import MISSING, main
from bench.measure.cases import dispatch_adapter
from bench.measure.cases.dispatch import proposal
from bench.measure.cases.dispatch_adapter import proposal as adapter_proposal
from bench.measure.cases.sizes import tiny
from tss_kernels.backends import why_not
from tss_kernels.configs import table_for

CPU = torch.device("cpu")


def record(rows: int, fused: float | None, materialise: float, features=(1024, 1024), product="forward") -> dict:
    times = {"fused": fused, "materialise": materialise}
    return {
        "operation": f"dispatch {product}", "dtype": "bfloat16",
        "shape": {"rows": rows, "in": features[0], "out": features[1]},
        "variants": {
            name: {"role": "ours"} | ({"failed": "wrong"} if time is None else {"median_us": time})
            for name, time in times.items()
        },
    }  # fmt: skip


def rows_of(*records: dict) -> list[float | None]:
    return [entry["rows"] for entry in proposal(records, CPU, "here")["crossovers"]]


def test_fused_runs_up_to_the_last_number_of_rows_before_it_is_slower():
    assert rows_of(record(256, 1, 2), record(1024, 3, 4), record(4096, 9, 8), record(16384, 9, 8)) == [1024]


def test_always_and_never():
    assert rows_of(record(256, 1, 2), record(4096, 8, 8)) == [None]
    assert rows_of(record(256, 3, 2), record(4096, 8, 9)) == [0]


def test_one_lucky_size_beyond_a_slower_one_does_not_count():
    assert rows_of(record(256, 1, 2), record(1024, 5, 4), record(4096, 7, 8)) == [256]


def test_what_failed_its_check_proposes_nothing():
    assert rows_of(record(256, None, 2)) == []


def test_entries_have_the_keys_of_the_table_and_name_what_they_replace():
    table = table_for(CPU)
    made = proposal(
        [record(256, 1, 2), record(256, 1, 2, (1024, 64), "input_grad"), record(256, 1, 2, (1001, 57))], CPU, "here"
    )
    assert made["table"] == table.name
    for entry in made["crossovers"]:
        present = table.crossovers[entry["product"], entry["kind"], entry["even"], entry["bound"]]
        assert entry["present"]["basis"] == present.basis
        assert entry["basis"] == "measured here"
    assert [entry["even"] for entry in made["crossovers"]] == [False, True, True]


def test_every_strategy_runs(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    if main(["dispatch", "--device", "cpu", "--tiny", "--out", str(path)]) == MISSING:
        pytest.skip("Triton's interpreter is off")
    result = json.loads(path.read_text())["parts"]["measure.dispatch"]["result"]
    for case in result["cases"]:
        assert [set(variant) >= {"median_us"} for variant in case["variants"].values()] == [True, True], case
    assert len(result["proposal"]["crossovers"]) == 4
    assert [entry["bottleneck"] for entry in result["proposal"]["gated_adapter"]] == [16]


def test_the_adapter_is_proposed_apart():
    records = [
        {
            "operation": "dispatch gated_adapter", "dtype": "float32",
            "shape": {"rows": rows, "hidden": 1024, "bottleneck": 64},
            "variants": {"one kernel": {"median_us": one}, "two products": {"median_us": 2.0}},
        }
        for rows, one in ((256, 1.0), (1024, 1.5), (4096, 2.5))
    ]  # fmt: skip
    assert rows_of(*records) == []
    (entry,) = adapter_proposal(records, "here")
    assert (entry["dtype"], entry["rows"], entry["basis"]) == ("float32", 1024, "measured here")


def test_forcing_one_kernel_leaves_the_choice_as_it_was():
    from tss_kernels.gated_adapter import triton

    before, (case,) = triton.SLOW_ROWS, dispatch_adapter.cases(tiny(CPU))
    if why_not("triton", "gated_adapter", CPU, torch.float32) is None:
        case.variants[0].bind(case.draw(0))()
    assert before == triton.SLOW_ROWS
