"""Every measured operation at tiny sizes on the CPU: checked, timed, recorded; and nothing wrong gets a time."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

from bench.measure import runner
from bench.measure.__main__ import main
from bench.measure.case import COMPARED, EXACT, PEERS, Variant, by_backends, failure_of
from bench.measure.cases import GROUPS, MODELS, STARTS
from bench.measure.cases.gated_linear import cases as linear_cases
from bench.measure.cases.sizes import bart_large, tiny
from bench.measure.ceilings import measure_ceilings, read_ceilings
from bench.measure.runner import Budget, Ceilings, DeviceLost, check_variant, clock_variants, describe, run_cases
from bench.measure.timing import timer_for
from tss_kernels.backends.dispatch import forced_backend, implementation, select, use_backend
from tss_kernels.backends.registry import why_not

CPU = torch.device("cpu")
OPERATIONS = [name for name in GROUPS if name not in {"dispatch", *MODELS, *STARTS}]
CEILINGS = Ceilings(1e9, {"bfloat16": 1e9})


def budget() -> Budget:
    return Budget(0.0, time.monotonic() + 600)


def measure_variant(case, variant, *, device=CPU):
    """One variant alone, checked and timed."""
    case = replace(case, variants=(variant,))
    checked = {variant.name: check_variant(case, variant, device)}
    return clock_variants(case, checked, timer_for(device), budget(), CEILINGS).records[variant.name]


def measured(path, group: str) -> dict:
    assert main([group, "--device", "cpu", "--tiny", "--out", str(path)]) == 0
    return json.loads(path.read_text())["parts"][f"measure.{group}"]["result"]


@pytest.mark.parametrize("group", [name for name in GROUPS if name != "dispatch"])
def test_every_variant_passes_its_check_and_is_timed(group, tmp_path):
    if group in MODELS:
        pytest.importorskip("transformers")
    records = measured(tmp_path / "results.json", group)["cases"]
    assert records
    for record in records:
        roles = [variant["role"] for variant in record["variants"].values()]
        assert roles[0] == "ours"
        if group in OPERATIONS:
            assert roles.count("rival") >= 1
        for name, variant in record["variants"].items():
            if "skipped" in variant:
                assert name.rpartition(", ")[2] in (*COMPARED, "compiled") or name == "PEFT LoRA", variant
                continue
            assert variant["low_us"] <= variant["median_us"] <= variant["high_us"], variant
            assert variant["repeats"] >= 2
            assert variant["checked"]
            assert ("ratio" in variant) == (variant is not next(iter(record["variants"].values())))


def test_curves_have_more_than_one_point_and_each_shape_once():
    records = [describe(case) for group in ("scaling", "tasks") for case in GROUPS[group](tiny(CPU))]
    for curve in ("rows", "in", "out", "bottleneck", "tensors", "tasks"):
        points = [record for record in records if record["curve"] == curve]
        operations = {record["operation"] for record in points}
        for operation in operations:
            sizes = [record["shape"][curve] for record in points if record["operation"] == operation]
            assert len(sizes) == len(set(sizes)) >= 2, (operation, curve)
        assert operations


def test_roofline_shares_are_of_the_measured_ceilings(tmp_path):
    path = tmp_path / "results.json"
    ceilings = measured(path, "ceilings")
    assert set(ceilings["flops_per_second"]) == {"bfloat16", "float32"}
    (record, *_) = measured(path, "gates")["cases"]
    ours = record["variants"]["tss"]
    assert ours["roofline_share"] == pytest.approx(
        record["bytes"] / ceilings["bytes_per_second"] * 1e6 / ours["median_us"], abs=1e-4
    )


def test_roofline_of_unknown_rates_is_that_of_the_bytes():
    case = next(iter(linear_cases(bart_large(CPU))))
    assert Ceilings(4e12, {}).seconds(case) == case.cost.bytes / 4e12
    assert Ceilings(4e12, {"bfloat16": 1e9}).seconds(case) == case.cost.flops / 1e9
    assert read_ceilings(None) is None
    assert read_ceilings({}) is None
    assert read_ceilings(measure_ceilings(timer_for(CPU), tiny=True)) is not None


def test_costs_are_counted():
    """rows 16384, 1024 -> 64 in bfloat16: x, y and W two bytes each, scores and their gradient four, gates a bit."""
    costs = {case.operation: case.cost for case in list(linear_cases(bart_large(CPU)))[:4]}
    rows, inner, out = 16384, 1024, 64
    moved, weights = 2 * rows * (inner + out), inner * out
    assert costs["gated_linear forward"] == (moved + 2 * weights + 4 * weights, 2 * rows * weights)
    assert costs["gated_linear dX"] == (moved + 2 * weights + weights // 8, 2 * rows * weights)
    assert costs["gated_linear dS"] == (moved + 2 * weights + 8 * weights, 2 * rows * weights)
    assert costs["gated_linear forward+backward"].flops == 6 * rows * weights


def spoil(outputs: dict[str, torch.Tensor], name: str, fault: str) -> dict[str, torch.Tensor]:
    wrong = outputs[name].detach().clone()
    if wrong.dtype == torch.bool:
        wrong.flatten()[-1].logical_not_()
    elif not wrong.dtype.is_floating_point:
        wrong.flatten()[-1] ^= 1
    elif fault == "nothing written at the end":
        wrong.flatten()[-1] = float("nan")
    else:
        wrong.flatten()[-1] += 0.5 * wrong.abs().max() + 0.01
    return outputs | {name: wrong}


@pytest.mark.parametrize("fault", ["one element off", "nothing written at the end"])
@pytest.mark.parametrize("group", OPERATIONS)
def test_a_wrong_output_gets_no_time(group, fault):
    for case in GROUPS[group](tiny(CPU)):
        for variant in case.variants:
            if variant.role == "floor" or variant.late or variant.backend is not None:
                continue
            for name in case.formula(case.draw(0), EXACT):

                def planted(inputs, variant=variant, name=name):
                    call = variant.bind(inputs)
                    return lambda: spoil(call(), name, fault)

                record = measure_variant(case, replace(variant, bind=planted))
                assert name in record["failed"], f"{case}, {variant.name}, {name}"
                assert not any(key.endswith("_us") for key in record)


def test_a_float32_result_of_ours_must_not_be_rounded_to_bfloat16():
    case = next(case for case in linear_cases(tiny(CPU)) if case.operation == "gated_linear dS")
    ours, rival = case.variants[0], case.variants[-1]
    assert (ours.role, rival.role) == ("ours", "rival")
    assert failure_of(case, rival, 0) is None
    assert "over the bound" in str(failure_of(case, replace(rival, role="ours"), 0))


def test_outputs_of_another_name_or_shape_are_wrong():
    case = next(iter(linear_cases(tiny(CPU))))
    ours = case.variants[0]
    renamed = replace(ours, bind=lambda inputs: lambda: {"z": ours.bind(inputs)()["y"]})
    assert "z where y" in str(failure_of(case, renamed, 0))
    shorter = replace(ours, bind=lambda inputs: lambda: {"y": ours.bind(inputs)()["y"][1:]})
    assert "(32, 8)" in str(failure_of(case, shorter, 0))


def test_memory_that_is_not_there_is_no_failure_and_an_exception_is():
    case = next(iter(linear_cases(tiny(CPU))))

    def raising(error: Exception):
        def bind(inputs):
            raise error

        return replace(case.variants[0], bind=bind)

    record = measure_variant(case, raising(torch.OutOfMemoryError("full")))
    assert (record["role"], record.get("skipped")) == ("ours", "out of memory: full")
    record = measure_variant(case, raising(RuntimeError("no such kernel")))
    assert (record["role"], record.get("failed")) == ("ours", "RuntimeError: no such kernel")
    assert "median_us" not in record


def test_an_interrupted_group_keeps_what_it_has(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    real, seen = runner.clock_variants, []

    def interrupting(case, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(case.operation)
        return real(case, *rest)

    monkeypatch.setattr(runner, "clock_variants", interrupting)
    with pytest.raises(KeyboardInterrupt):
        main(["gated_linear", "--device", "cpu", "--tiny", "--out", str(path)])
    cases = json.loads(path.read_text())["parts"]["measure.gated_linear"]["result"]["cases"]
    assert [case["operation"] for case in cases if "median_us" in case["variants"].get("tss", {})] == seen
    monkeypatch.setattr(runner, "clock_variants", real)
    before = cases[0]["variants"]["tss"]
    assert main(["gated_linear", "--device", "cpu", "--tiny", "--continue", "--out", str(path)]) == 0
    cases = json.loads(path.read_text())["parts"]["measure.gated_linear"]["result"]["cases"]
    assert cases[0]["variants"]["tss"] == before
    assert all("median_us" in case["variants"]["tss"] for case in cases)


def test_when_the_time_is_up_nothing_more_is_measured():
    cases = [case for case in linear_cases(tiny(CPU)) if case.operation == "gated_linear dX"]
    records = run_cases(cases, timer_for(CPU), Budget(0.0, time.monotonic()), None, lambda records: None)
    assert {str(variant.get("skipped")) for variant in records[0]["variants"].values()} == {"the time was up"}


def test_another_process_goes_on_after_the_device_was_lost(monkeypatch):
    cases = [case for case in linear_cases(tiny(CPU)) if case.operation == "gated_linear dX"]
    kept: list = []
    monkeypatch.setattr(runner, "_lost", lambda device: "illegal memory access")
    with pytest.raises(DeviceLost, match=r"dX.*tss.*illegal memory access"):
        run_cases(cases, timer_for(CPU), budget(), None, lambda records: kept.extend(records))
    monkeypatch.setattr(runner, "_lost", lambda device: None)
    before = kept[0]["variants"]["tss"] | {"failed": "as left by the first process"}
    kept[0]["variants"] = {"tss": before}
    records = run_cases(cases, timer_for(CPU), budget(), None, lambda records: None, known=kept)
    assert records[0]["variants"]["tss"] == before
    assert "median_us" in records[0]["variants"]["eager"]


def test_a_wrong_step_gets_no_time(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    chosen = implementation("gated_linear", select("gated_linear", CPU, torch.bfloat16))
    name = "scores_grad_of" if hasattr(chosen, "scores_grad_of") else "scores_grad"  # what all of its ways end in
    right = getattr(chosen, name)
    monkeypatch.setattr(chosen, name, lambda *tensors: right(*tensors).neg())
    record, _ = measured(tmp_path / "results.json", "step")["cases"]
    assert "score gradients" in record["variants"]["tss"]["failed"]
    assert "median_us" not in record["variants"]["tss"]
    assert "median_us" not in record["variants"]["eager"]  # the step in float64, which judges both, is wrong
    assert "median_us" in record["variants"]["adapters removed"]


def test_a_backends_variant_is_made_and_called_with_it_forced(monkeypatch):
    case = next(iter(linear_cases(tiny(CPU))))
    seen = []

    def bind(inputs):
        seen.append(forced_backend())
        call = case.variants[0].bind(inputs)

        def called():
            seen.append(forced_backend())
            with use_backend("reference"):
                return call()

        return called

    monkeypatch.setattr(runner, "why_not", lambda *_: None)
    tss, _, cuda, _ = by_backends("gated_linear", Variant("tss", "ours", bind))
    record = measure_variant(case, cuda)
    assert (record["backend"], set(seen)) == ("cuda", {"cuda"})
    assert forced_backend() is None
    seen.clear()
    record = measure_variant(case, tss)
    assert (record["backend"], set(seen)) == (select("gated_linear", CPU, torch.bfloat16), {None})
    monkeypatch.setattr(runner, "select", lambda *_: "cuda")
    assert "the same as tss" in measure_variant(case, cuda)["skipped"]


def test_a_backend_that_cannot_run_is_skipped_with_its_reason():
    case = next(iter(linear_cases(tiny(CPU))))
    for variant in case.variants:
        if variant.backend is not None:
            obstacle = why_not(variant.backend, "gated_linear", CPU, torch.bfloat16)
            record = measure_variant(case, variant)
            assert record.get("skipped") == (None if obstacle is None else obstacle.reason)


def test_every_operation_has_a_variant_for_each_backend():
    for group in OPERATIONS:
        for case in GROUPS[group](tiny(CPU)):
            assert {variant.backend for variant in case.variants if variant.op} == {None, *PEERS}, str(case)
