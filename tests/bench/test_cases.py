"""Every measured operation at tiny sizes on the CPU: checked, then timed by turns; nothing wrong gets a time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tss_kernels
from bench.cases import GROUPS, PROCESSES, WHOLE_MODELS, step
from bench.cases.gated_linear import cases as linear_cases
from bench.cases.models import LABELS, Setting, backbone, batch_for
from bench.cases.sizes import bart_large, tiny
from bench.core import measure
from bench.core.case import EXACT, by_backend, by_backends, failure_of
from bench.core.ceilings import measure_ceilings
from bench.core.measure import Ceilings, DeviceLost, measure_case
from bench.core.timing import timer_for

CPU = torch.device("cpu")
OPERATIONS = [name for name in GROUPS if name not in {"shapes", "scaling", "calls"} | WHOLE_MODELS | PROCESSES]
CEILINGS = Ceilings(1e9, {"bfloat16": 1e9})


def measured(case):
    return measure_case(case, timer_for(CPU), 0.0)


def linear(operation: str):
    return next(case for case in linear_cases(tiny(CPU)) if case.operation == operation)


@pytest.mark.parametrize("group", GROUPS)
def test_every_variant_passes_its_check_and_is_timed(group):
    if group in WHOLE_MODELS:
        pytest.importorskip("transformers")
    cases = list(GROUPS[group](tiny(CPU)))
    assert len({str(case) for case in cases}) == len(cases) > 0
    for case in cases:
        found = measured(case)
        assert found.competitors[0].variant.role == "ours"
        assert [one.failed for one in found.competitors] == [None] * len(found.competitors)
        for one in found.timed:
            record = found.record(one, CEILINGS)
            assert record["percentiles_us"][0] <= record["percentiles_us"][1]
            assert ("ratio" in record) == (one is not found.ours)
            assert set(record["load"]) == {"average", "others"}
        if group in OPERATIONS:
            assert {"ours", "rival"} <= {one.variant.role for one in found.timed}


def test_roofline_shares_are_of_the_measured_ceilings():
    ceilings = measure_ceilings(timer_for(CPU), tiny=True)
    assert set(ceilings.flops_per_second) == {"bfloat16", "float32"}
    found = measured(linear("gated_linear dX"))
    assert found.ours is not None
    record, case = found.record(found.ours, ceilings), found.case
    least = max(
        case.cost.bytes / ceilings.bytes_per_second, case.cost.flops / ceilings.flops_per_second["bfloat16"]
    )  # fmt: skip
    median = sorted(found.ours.times.each)
    assert record["roofline_share"] == pytest.approx(least * 1e6 / (sum(median) / len(median)))


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
            if variant.role == "floor" or variant.name in ("compile", "tss, reference"):
                continue
            for name in case.formula(case.draw(0), EXACT):

                def planted(inputs, variant=variant, name=name):
                    call = variant.bind(inputs)
                    return lambda: spoil(call(), name, fault)

                found = measured(replace(case, variants=(replace(variant, bind=planted),)))
                assert name in str(found.competitors[0].failed), f"{case}, {variant.name}, {name}"
                assert found.timed == []


def test_a_float32_result_of_ours_must_not_be_rounded_to_bfloat16():
    case = linear("gated_linear dS")
    ours, rival = case.variants[0], case.variants[-1]
    assert (ours.role, rival.role) == ("ours", "rival")
    assert failure_of(case, rival) is None
    assert "over the bound" in str(failure_of(case, replace(rival, role="ours")))


def test_outputs_of_another_name_or_shape_are_wrong():
    case = linear("gated_linear forward")
    ours = case.variants[0]
    renamed = replace(ours, bind=lambda inputs: lambda: {"z": ours.bind(inputs)()["y"]})
    assert "z where y" in str(failure_of(case, renamed))
    shorter = replace(ours, bind=lambda inputs: lambda: {"y": ours.bind(inputs)()["y"][1:]})
    assert "(32, 8)" in str(failure_of(case, shorter))


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (torch.OutOfMemoryError("full"), False),
        (tss_kernels.BackendUnavailable("not here"), False),
        (RuntimeError("no such kernel"), True),
    ],
)
def test_what_is_not_there_is_no_failure_and_an_exception_is(error, failed):
    def raising(inputs):
        raise error

    case = linear("gated_linear forward")
    (one,) = measured(replace(case, variants=(replace(case.variants[0], bind=raising),))).competitors
    assert str(error) in str(one.failed if failed else one.skipped)
    assert (one.failed is None) != failed
    assert one.times is None


def test_a_lost_device_ends_the_process(monkeypatch):
    monkeypatch.setattr(measure, "_lost", lambda device: "illegal memory access")
    with pytest.raises(DeviceLost, match=r"gated_linear dX.*illegal memory access"):
        measured(linear("gated_linear dX"))


def test_every_backend_of_the_device_is_measured_once():
    case = linear("gated_linear forward")
    names = [variant.name for variant in case.variants if variant.role == "ours"]
    chosen = tss_kernels.explain("gated_linear", *(torch.zeros(2, 2) for _ in range(3))).backend
    assert names == ["tss", *(f"tss, {peer}" for peer in ("native", "reference") if peer != chosen)]
    told = SimpleNamespace(backend="triton")
    on_gpu = by_backends(told, torch.device("cuda"), case.variants[0])  # type: ignore[arg-type]
    assert [(one.name, one.backend) for one in on_gpu] == [("tss", "triton"), ("tss, cuda", "cuda")]


def test_a_backends_variant_is_made_and_called_with_it_forced():
    x = torch.zeros(2, 2)
    seen = []

    def bind(inputs):
        def call():
            seen.append(tss_kernels.explain("gated_linear", x, x, x).reason)
            return {}

        call()
        return call

    by_backend("reference", replace(linear("gated_linear forward").variants[0], bind=bind)).bind({})()
    assert len(seen) == 2
    assert all(reason.startswith("forced") for reason in seen)
    assert not tss_kernels.explain("gated_linear", x, x, x).reason.startswith("forced")


def test_a_wrong_step_gets_no_time(monkeypatch):
    pytest.importorskip("transformers")
    case = next(iter(step.cases(tiny(CPU))))
    right = step._results

    def wrong(model, setting, make, compiled=False):
        loss, grads = right(model, setting, make, compiled)
        return loss, grads.neg() if make is None else grads

    monkeypatch.setattr(step, "_results", wrong)
    found = {one.variant.name: one for one in measured(case).competitors}
    assert "score gradients" in str(found["tss"].failed)
    assert found["tss"].times is None
    assert found["eager"].times is None  # the step in float64, which judges both, is wrong
    assert found["adapters removed"].times is not None


def test_lora_reads_the_tokens_that_ours_reads():
    pytest.importorskip("transformers")
    setting = Setting("tiny", torch.float32, CPU, 2, 8)
    model = backbone(setting)
    seen = {}
    for part in ("encoder", "decoder"):
        stack = getattr(model.base_model, part)
        stack.register_forward_hook(
            lambda module, args, kwargs, output, part=part: seen.update({part: kwargs["input_ids"].shape}),
            with_kwargs=True,
        )
    labelled = step.Labelled(model)
    loss = labelled(**batch_for(setting, model.config.vocab_size)).loss
    assert seen == {"encoder": (2, 8), "decoder": (2, 8)}
    assert loss.shape == ()
    assert labelled.head.out_features == LABELS
