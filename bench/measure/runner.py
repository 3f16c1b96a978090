"""Checks and times cases one after another; every finished piece is handed on at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from bench.measure.case import Case, Judged, Variant, failure_of
from bench.measure.report import is_timed
from bench.measure.timing import Timer, Times, spread
from tss_kernels.backends.registry import why_not
from tss_kernels.backends.dispatch import select

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
        "bytes": case.cost.bytes, "flops": case.cost.flops, "curve": case.curve,
        "threads": torch.get_num_threads(), "variants": {},
    }  # fmt: skip


def not_measured(case: Case, variant: Variant, device: torch.device) -> str | None:
    """Why a variant need not or cannot be measured here, or None."""
    if variant.missing is not None or variant.op is None or variant.backend is None:
        return variant.missing
    if variant.backend == "reference" and device.type != "cpu":
        return "the specification: measured on a CPU only, where it is what runs without a compiler"
    obstacle = why_not(variant.backend, variant.op, device, case.dtype)
    if obstacle is not None:
        return obstacle.reason
    if variant.twin is not None and select(variant.op, device, case.dtype) == variant.backend:
        return f"the same as {variant.twin}: dispatch chooses this backend"
    return None


def check_variant(case: Case, variant: Variant, device: torch.device, known: Judged | None = None) -> Record:
    """A variant's record before it is timed: whether it passed its check, or why it is left out or wrong.

    known: as `failure_of` takes it.
    """
    record: Record = {"role": variant.role}
    try:
        left_out = not_measured(case, variant, device)
        if left_out is not None:
            return record | {"skipped": left_out}
        if variant.op is not None:
            record |= {"op": variant.op, "backend": variant.backend or select(variant.op, device, case.dtype)}
        failure = None if variant.role == "floor" else failure_of(case, variant, 100, known)
    except Exception as error:
        return record | _raised(error)
    if failure is not None:
        return record | {"failed": failure}
    if variant.role == "floor":
        return record | {"checked": "not checked: " + (variant.differs or "it computes less")}
    return record | {"checked": case.checked}


def _raised(error: Exception) -> Record:
    """Whatever a kernel or a compiler raises is the variant's result; memory that is not there is no fault of it."""
    if isinstance(error, torch.OutOfMemoryError):
        return {"skipped": f"out of memory: {error}".splitlines()[0]}
    return {"failed": f"{type(error).__name__}: {error}"[:2000]}


def _is_finished(record: Record) -> bool:
    """Whether nothing is left to do for a variant: one that was only checked has no time yet."""
    return is_timed(record) or not _is_ready(record)


def _is_ready(record: Record) -> bool:
    return not {"failed", "skipped"} & record.keys()


class Clocked(NamedTuple):
    """What taking turns gave: a record for each variant, and the times of each turn of those that were timed."""

    records: dict[str, Record]
    times: dict[str, Times]


def clock_variants(
    case: Case, checked: dict[str, Record], timer: Timer, budget: Budget, ceilings: Ceilings | None
) -> Clocked:
    """Times the variants of one case that passed their checks, all by turns.

    checked: what `check_variant` gave, by variant; all of it comes back, with times where there are any. The ratios are
    to the case's first of ours.
    """
    variants = [variant for variant in case.variants if variant.name in checked and _is_ready(checked[variant.name])]
    records, competitors = dict(checked), {}
    sets = [case.draw(seed) for seed in range(case.sets)]
    for variant in variants:
        try:
            competitors[variant.name] = [variant.bind(inputs) for inputs in sets]
            competitors[variant.name][0]()
        except Exception as error:
            competitors.pop(variant.name, None)
            records[variant.name] |= _raised(error)
    if not competitors:
        return Clocked(records, {})
    try:
        times = timer.by_turns(competitors, budget.per_variant, cold=case.cold)
        peaks = {name: timer.peak_bytes(calls[0]) for name, calls in competitors.items()}
    except Exception as error:
        return Clocked(records | {name: records[name] | _raised(error) for name in competitors}, {})
    base = (
        case.main if case.main in times else None
    )  # never a ratio to another one of ours, which a reader would take for it
    for name, measured in times.items():
        records[name] |= _timed(measured, peaks[name])
        if ceilings is not None and case.cost.bytes:
            share = ceilings.seconds(case) * 1e6 / records[name]["median_us"]
            records[name]["roofline_share"] = round(share, 4)
        if base is not None and name != base:
            records[name]["ratio"] = {
                key: round(value, 4) for key, value in measured.ratio(times[base])._asdict().items()
            }
    facts = sets[0].get("facts")
    if facts and base is not None:
        records[base]["facts"] = facts
    return Clocked(records, times)


def _timed(times: Times, peak: int | None) -> Record:
    record: Record = {f"{name}_us": round(value, 3) for name, value in spread(times.each)._asdict().items()}
    return record | {"host_us": round(times.host, 3), "repeats": len(times.each), "peak_bytes": peak}


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

    keep: called with all records so far after every check and every case. known: records of an earlier process, whose
    variants are not measured again. Raises DeviceLost.
    """
    records = [describe(case) for case in cases]
    for record in records:
        earlier = next((old for old in known if same_case(old, record)), {"variants": {}})
        record["variants"] |= {name: one for name, one in earlier["variants"].items() if _is_finished(one)}
    for late in (False, True):
        for case, record in zip(cases, records, strict=True):
            for variant in case.variants:
                if variant.late == late and variant.name not in record["variants"] and budget.over():
                    record["variants"][variant.name] = {"role": variant.role, "skipped": "the time was up"}
            _run_case(case, record["variants"], late, Run(timer, budget, ceilings, lambda: keep(records)))
    keep(records)
    return records


class Run(NamedTuple):
    """What measuring one case needs; keep: called when there is something new."""

    timer: Timer
    budget: Budget
    ceilings: Ceilings | None
    keep: Callable[[], None]


def _run_case(case: Case, variants: dict[str, Record], late: bool, run: Run) -> None:
    """Checks and times what is new of one case. Ours is timed again beside the late ones, for their ratios."""
    judged: Judged = {}
    new = [variant for variant in case.variants if variant.late == late and variant.name not in variants]
    for variant in new:
        variants[variant.name] = check_variant(case, variant, run.timer.device, judged)
        run.keep()
        _raise_if_lost(case, variant.name, run.timer.device)
    names = [variant.name for variant in new if _is_ready(variants[variant.name])]
    if not names:
        return
    beside = {case.main: {"role": "ours"}} if case.main is not None and is_timed(variants.get(case.main)) else {}
    del judged  # as large as the inputs, and of no more use
    measured = clock_variants(
        case, beside | {name: variants[name] for name in names}, run.timer, run.budget, run.ceilings
    )
    variants |= {name: measured.records[name] for name in names}
    run.keep()
    _raise_if_lost(case, ", ".join(names), run.timer.device)


def _raise_if_lost(case: Case, name: str, device: torch.device) -> None:
    lost = _lost(device)
    if lost is not None:
        raise DeviceLost(f"{case}, {name}: the device is lost to this process: {lost}")


def same_case(one: Record, other: Record) -> bool:
    """Whether two records are of the same operation at the same shape."""
    return all(one.get(key) == other.get(key) for key in ("operation", "shape", "dtype", "threads", "curve"))
