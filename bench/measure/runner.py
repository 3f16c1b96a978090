"""Checks and times cases one after another; every finished piece is handed on at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from bench.measure.case import Case, Judged, Variant, failure_of
from bench.measure.timing import Timer
from tss_kernels.backends import why_not
from tss_kernels.dispatch import select

ROTATING = 3  # sets of inputs that the repeats go round
Record = dict[str, Any]


class DeviceLost(RuntimeError):
    """The device is of no more use to this process, after an illegal access for example; another process may go on."""


class Budget(NamedTuple):
    """How long things may take: one variant's repeats in seconds, and when (time.monotonic) to start nothing more."""

    per_variant: float
    end: float

    def over(self) -> bool:
        """Whether nothing more may start."""
        return time.monotonic() >= self.end


class Ceilings(NamedTuple):
    """What this machine was measured to reach; operations per second by the dtype's name."""

    bytes_per_second: float
    flops_per_second: dict[str, float]

    def seconds(self, case: Case) -> float:
        """The time under which the case cannot be done; of the bytes alone where the dtype's rate is unknown."""
        rate = self.flops_per_second.get(str(case.dtype).removeprefix("torch."))
        return max(case.cost.bytes / self.bytes_per_second, case.cost.flops / rate if rate else 0.0)


def describe(case: Case) -> Record:
    """A case's record before anything is measured."""
    return {
        "operation": case.operation, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch."),
        "bytes": case.cost.bytes, "flops": case.cost.flops, "variants": {},
    }  # fmt: skip


def _left_out(case: Case, variant: Variant, device: torch.device) -> str | None:
    """Why a variant of one backend need not or cannot be measured, or None."""
    if variant.op is None or variant.backend is None:
        return None
    obstacle = why_not(variant.backend, variant.op, device, case.dtype)
    if obstacle is not None:
        return obstacle.reason
    if variant.twin is not None and select(variant.op, device, case.dtype) == variant.backend:
        return f"the same as {variant.twin}: dispatch chooses this backend"
    return None


def measure_variant(
    case: Case,
    variant: Variant,
    timer: Timer,
    budget: Budget,
    ceilings: Ceilings | None,
    known: Judged | None = None,
) -> Record:
    """The record of one variant: its time, or why there is none. Nothing is timed that failed its check.

    known: as `failure_of` takes it.
    """
    record: Record = {"role": variant.role}
    try:
        left_out = _left_out(case, variant, timer.device)
        if left_out is not None:
            return record | {"skipped": left_out}
        if variant.op is not None:
            record |= {"op": variant.op, "backend": variant.backend or select(variant.op, timer.device, case.dtype)}
        failure = None if variant.role == "floor" else failure_of(case, variant, 100, known)
        if failure is not None:
            return record | {"failed": failure}
        calls = [variant.bind(case.draw(seed)) for seed in range(ROTATING)]
        timing = timer.measure(calls, budget.per_variant)
        record["peak_bytes"] = timer.peak_bytes(calls[0])
    except torch.OutOfMemoryError as error:
        return record | {"skipped": f"out of memory: {error}".splitlines()[0]}
    except Exception as error:  # whatever a kernel or a compiler raises is this variant's result
        return record | {"failed": f"{type(error).__name__}: {error}"[:2000]}
    record |= {f"{name}_us": round(getattr(timing, name), 3) for name in ("median", "low", "high", "host")}
    record["repeats"] = timing.repeats
    if ceilings is not None:
        record["roofline_share"] = round(ceilings.seconds(case) * 1e6 / timing.median, 4)
    return record


def _lost(device: torch.device) -> str | None:
    """What makes the device useless to this process, such as an earlier illegal access, or None."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def run_cases(
    cases: Sequence[Case],
    timer: Timer,
    budget: Budget,
    ceilings: Ceilings | None,
    keep: Callable[[list[Record]], None],
    known: Sequence[Record] = (),
) -> list[Record]:
    """Measures all variants of all cases, those that must be compiled first last, and says of each what there is not.

    keep: called with all records so far after every variant. known: records of an earlier process, whose variants are
    not measured again. Raises DeviceLost.
    """
    records = [describe(case) for case in cases]
    for record in records:
        earlier = [old for old in known if all(old[key] == record[key] for key in ("operation", "shape", "dtype"))]
        record["variants"] |= earlier[0]["variants"] if earlier else {}
    for late in (False, True):
        for case, record in zip(cases, records, strict=True):
            judged: Judged = {}
            for variant in case.variants:
                if variant.late != late or variant.name in record["variants"]:
                    continue
                if budget.over():
                    record["variants"][variant.name] = {"role": variant.role, "skipped": "the time was up"}
                    continue
                record["variants"][variant.name] = measure_variant(case, variant, timer, budget, ceilings, judged)
                keep(records)
                lost = _lost(timer.device)
                if lost is not None:
                    raise DeviceLost(f"{case}, {variant.name}: the device is lost to this process: {lost}")
    keep(records)
    return records
