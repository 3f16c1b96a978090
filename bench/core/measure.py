"""Measurement of one case: check every competitor, then time those that passed, taking turns."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from bench.core.case import Case, Outputs, References, Variant, failure_of
from bench.core.machine import Load, LoadWatch, why_busy
from bench.core.timing import Timer, Times, spread
from tss_kernels import BackendUnavailable


class DeviceLost(RuntimeError):
    """The device is unusable for this process, for example after an illegal access; another process may continue."""


class Ceilings(NamedTuple):
    """Measured limits of this machine; operations per second are by dtype name."""

    bytes_per_second: float
    flops_per_second: dict[str, float]

    def seconds(self, case: Case) -> float:
        """Return the minimal time of the case; by its bytes only if the dtype's rate is unknown."""
        rate = self.flops_per_second.get(case.dtype_name)
        return max(case.cost.bytes / self.bytes_per_second, case.cost.flops / rate if rate else 0.0)


@dataclass
class Competitor:
    """Result of a variant: times only if it passed its check, else why it failed or was skipped."""

    variant: Variant
    failed: str | None = None
    skipped: str | None = None
    times: Times | None = None
    peak_bytes: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def raised(self, error: Exception) -> None:
        """Record an exception as failure, or as skipped if a backend is unavailable or memory ran out."""
        if isinstance(error, BackendUnavailable | torch.OutOfMemoryError):
            self.skipped = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            self.failed = f"{type(error).__name__}: {error}"[:2000]

    @property
    def ready(self) -> bool:
        """Whether it may be timed."""
        return self.failed is None and self.skipped is None


@dataclass
class Measured:
    """All competitors of a case, and the machine's other load while they were timed."""

    case: Case
    competitors: list[Competitor]
    load: Load | None = None

    @property
    def ours(self) -> Competitor | None:
        """The first of ours, the base of ratios, or None without a time; never another of ours, to avoid confusion."""
        first = next((one for one in self.competitors if one.variant.role == "ours"), None)
        return first if first is not None and first.times is not None else None

    @property
    def timed(self) -> list[Competitor]:
        """Competitors that have a time."""
        return [one for one in self.competitors if one.times is not None]

    def record(self, one: Competitor, ceilings: Ceilings | None) -> dict[str, Any]:
        """Return what a result file stores about a timed competitor besides its times."""
        case, variant, times = self.case, one.variant, one.times
        assert times is not None
        own = spread(times.each)
        said: dict[str, Any] = {
            "operation": case.operation, "shape": case.shape, "dtype": case.dtype_name, "variant": variant.name,
            "role": variant.role, "backend": variant.backend, "threads": torch.get_num_threads(),
            "checked": f"not checked: {variant.differs}" if variant.role == "floor" else case.checked,
            "percentiles_us": [own.low, own.high], "host_us": times.host, "peak_bytes": one.peak_bytes,
        }  # fmt: skip
        if ceilings is not None and case.cost.bytes:
            said["roofline_share"] = ceilings.seconds(case) * 1e6 / own.median
        if self.ours is not None and self.ours.times is not None and one is not self.ours:
            said["ratio"] = times.ratio(self.ours.times)._asdict()
        wide = (own.high - own.low) / own.median
        said["spread"] = wide
        if self.load is not None:
            said["load"] = self.load._asdict()
            said["busy"] = why_busy(self.load, wide, torch.get_num_threads())
        return said | ({"facts": one.facts} if one.facts else {})


def _check(case: Case, variant: Variant, known: References) -> Competitor:
    one = Competitor(variant, skipped=variant.missing)
    if one.skipped is None and variant.role != "floor":
        try:
            one.failed = failure_of(case, variant, known)
        except Exception as error:
            one.raised(error)
    return one


def _bind(one: Competitor, sets: list[dict[str, Any]]) -> list[Callable[[], Outputs]]:
    """Return the variant's calls, one per set of inputs; an empty list if it cannot run."""
    try:
        calls = [one.variant.bind(inputs) for inputs in sets]
        calls[0]()
    except Exception as error:
        one.raised(error)
        return []
    return calls


def measure_case(case: Case, timer: Timer, seconds: float, names: Collection[str] | None = None) -> Measured:
    """Check and time the variants of a case, or those of these names; seconds: for each variant's repeats.

    Raises DeviceLost.
    """
    known: References = {}
    chosen = [variant for variant in case.variants if names is None or variant.name in names]
    found = Measured(case, [_check(case, variant, known) for variant in chosen])
    known.clear()  # as large as the inputs, and no longer needed
    _raise_if_lost(case, timer.device)
    sets = [case.draw(seed) for seed in range(case.sets)]
    bound = {one.variant.name: (one, _bind(one, sets)) for one in found.competitors if one.ready}
    calls = {name: calls for name, (_, calls) in bound.items() if calls}
    if not calls:
        return found
    watch = LoadWatch()
    try:
        times = timer.by_turns(calls, seconds, cold=case.cold)
        for name, taken in times.items():
            bound[name][0].peak_bytes = timer.peak_bytes(calls[name][0])
            bound[name][0].times = taken
    except Exception as error:
        for name in calls:
            bound[name][0].times = None
            bound[name][0].raised(error)
    found.load = watch.load()
    if found.ours is not None:
        found.ours.facts = sets[0].get("facts", {})
    _raise_if_lost(case, timer.device)
    return found


def _lost(device: torch.device) -> str | None:
    """Return why the device is unusable for this process, such as an earlier illegal access, or None."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _raise_if_lost(case: Case, device: torch.device) -> None:
    lost = _lost(device)
    if lost is not None:
        raise DeviceLost(f"{case}: this process has lost the device: {lost}")
