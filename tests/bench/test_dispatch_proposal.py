"""From timings of every strategy and backend to entries of the configuration tables."""

from __future__ import annotations

import json

import pytest
import torch

from bench.measure.__main__ import MISSING, main
from bench.measure.case import COMPARED
from bench.measure.cases import dispatch, dispatch_adapter
from bench.measure.cases.sizes import tiny
from bench.measure.proposals import adapters, backends, crossovers, lines, proposal, tilings
from tss_kernels.backends.registry import why_not
from tss_kernels.backends.tables import table_for
from tss_kernels.backends.tables.cuda import cuda_table

CPU = torch.device("cpu")


def ours(backend: str, time: float | None, op: str = "gated_linear", host: float = 0.0) -> dict:
    made = {"role": "ours", "op": op, "backend": backend}
    return made | ({"failed": "wrong"} if time is None else {"median_us": time, "host_us": host})


def record(rows: int, fused: float | None, materialise: float, features=(1024, 1024), product="forward") -> dict:
    return {
        "operation": f"dispatch {product}", "dtype": "bfloat16",
        "shape": {"rows": rows, "in": features[0], "out": features[1]},
        "variants": {"triton fused": ours("triton", fused), "triton materialise": ours("triton", materialise)},
    }  # fmt: skip


def rows_of(*records: dict) -> list[float | None]:
    return [entry["rows"] for entry in crossovers(records, CPU, "here")]


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
    made = crossovers(
        [record(256, 1, 2), record(256, 1, 2, (1024, 64), "input_grad"), record(256, 1, 2, (1001, 57))], CPU, "here"
    )
    for entry in made:
        present = table.crossovers[entry["product"], entry["kind"], entry["even"], entry["bound"]]
        assert entry["present"]["basis"] == present.basis
        assert (entry["basis"], entry["table"], entry["backend"]) == ("measured here", table.name, "triton")
    assert [entry["even"] for entry in made] == [False, True, True]


def by_tilings(rows: int, times: dict[str, float]) -> dict:
    made = record(rows, 1, 2)
    made["variants"] = {f"cuda {name}": ours("cuda", time) for name, time in times.items()}
    return made


def test_the_crossover_of_cuda_is_that_of_the_tiling_that_the_table_gives():
    # 4,096 rows of 1,024 features take wide blocks where there are warpgroups, as on the CPU
    times = {"small": 1.0, "wide": 2.0, "wide_groups": 5.0, "materialise": 4.0}
    (entry,) = crossovers([by_tilings(4096, times)], CPU, "here")
    present = cuda_table(CPU).crossovers["forward", "half", True, "arithmetic"]
    assert (entry["backend"], entry["rows"], entry["present"]["basis"]) == ("cuda", 0, present.basis)
    (better,) = tilings([by_tilings(4096, times)], CPU)
    assert (better["chosen"], better["fastest"], better["times"]) == ("wide_groups", "small", 5.0)
    assert tilings([by_tilings(4096, times | {"wide_groups": 0.5})], CPU) == []


def packed(cuda: float | None, triton: float, host: float = 0.0) -> dict:
    return {
        "operation": "pack_gates", "dtype": "float32", "shape": {"out": 1},
        "variants": {
            "tss": ours("cuda", cuda, "pack_gates", host), "tss, triton": ours("triton", triton, "pack_gates", host),
            "tss, cuda": {"role": "ours", "skipped": "the same as tss"},
            "eager": {"role": "rival", "median_us": 0.1, "host_us": 0.1},
        },
    }  # fmt: skip


def test_a_backend_is_preferred_by_the_geometric_mean():
    (entry,) = backends([packed(1.0, 4.0), packed(3.0, 2.0)], "here")
    assert (entry["op"], entry["backends"]) == ("pack_gates", ["cuda", "triton"])
    assert entry["basis"] == "measured here: 0.25 to 1.50 times triton's time in 2 cases, 0.61 in the mean"
    (entry,) = backends([packed(4.0, 1.0)], "here")
    assert entry["backends"] == ["triton", "cuda"]
    assert "0.25 to 0.25 times cuda's time" in entry["basis"]


def test_where_launches_take_longer_than_kernels_they_decide():
    one, other = packed(1.0, 4.0), packed(1.0, 4.0)
    one["variants"]["tss"]["host_us"] = 16.0
    assert [entry["backends"][0] for entry in backends([one], "here")] == ["triton"]
    assert [entry["backends"][0] for entry in backends([other], "here")] == ["cuda"]


def test_no_backend_is_preferred_of_which_a_check_failed():
    assert backends([packed(1.0, 4.0), packed(None, 4.0)], "here") == []


def test_every_candidate_runs_where_its_backend_does(tmp_path):
    path, here = (
        tmp_path / "results.json",
        [name for name in COMPARED if why_not(name, "gated_linear", CPU, torch.float32) is None],
    )
    if main(["dispatch", "--device", "cpu", "--tiny", "--out", str(path)]) == MISSING:
        assert here == []
        pytest.skip("neither Triton's interpreter nor kernels compiled for the CPU")
    result = json.loads(path.read_text())["parts"]["measure.dispatch"]["result"]
    for case in result["cases"]:
        for name, variant in case["variants"].items():
            assert ("median_us" in variant) == (name.split()[0] in here), (case, name)
    proposed = result["proposal"]
    assert {entry["backend"] for entry in proposed["crossovers"]} == set(here)
    assert len(proposed["crossovers"]) == 4 * len(here)
    assert [entry["bottleneck"] for entry in proposed["gated_adapter"]] == [16] * len(here)
    assert len(proposed["preferences"]) == (2 if len(here) == 2 else 0)
    assert len(result["said"]) == sum(len(part) for part in proposed.values())


def test_every_tiling_is_a_candidate_and_warpgroups_only_where_they_are(monkeypatch):
    even, uneven = list(dispatch.cases(tiny(CPU)))[::2]
    names = {variant.name for variant in even.variants}
    assert {"cuda small", "cuda narrow", "cuda wide", "cuda narrow_groups", "cuda wide_groups"} <= names
    assert [variant.name for variant in uneven.variants if variant.backend == "cuda"] == [
        "cuda general", "cuda materialise"
    ]  # fmt: skip
    monkeypatch.setattr(dispatch, "has_warpgroups", lambda device: False)
    assert not any("groups" in variant.name for case in dispatch.cases(tiny(CPU)) for variant in case.variants)


def test_the_adapter_is_proposed_apart():
    records = [
        {
            "operation": "dispatch gated_adapter", "dtype": "bfloat16",
            "shape": {"rows": rows, "hidden": 1024, "bottleneck": 64},
            "variants": {
                "triton one kernel": ours("triton", one), "triton two products": ours("triton", 2.0),
                "cuda narrow_32": ours("cuda", one + 1), "cuda two products": ours("cuda", 2.0),
            },
        }
        for rows, one in ((256, 1.0), (1024, 1.5), (4096, 2.5))
    ]  # fmt: skip
    assert rows_of(*records) == []
    by_triton, by_cuda = adapters(records, "here")
    assert (by_triton["backend"], by_triton["rows"], by_triton["basis"]) == ("triton", 1024, "measured here")
    assert (by_cuda["backend"], by_cuda["rows"]) == ("cuda", 256)
    assert "dispatch gated_adapter cuda bfloat16 1024 -> 64: one kernel up to 256 rows" in lines(
        proposal(records, CPU, "here")
    )


def test_forcing_one_kernel_leaves_the_choice_as_it_was():
    pytest.importorskip("triton")
    from tss_kernels.gated_adapter import triton

    before, (case,) = triton.SLOW_ROWS, dispatch_adapter.cases(tiny(CPU))
    if why_not("triton", "gated_adapter", CPU, torch.float32) is None:
        case.variants[0].bind(case.draw(0))()
    assert before == triton.SLOW_ROWS
