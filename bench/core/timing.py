"""Time and memory of calls that take turns: CUDA events on a GPU, a wall clock on a CPU, with one interface."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

Call = Callable[[], object]

WARM_UP = 3
FEWEST, MOST = 10, 100  # turns
SLOW, FEWEST_SLOW = 2.0, 5  # seconds per turn above which fewer turns suffice, and their number
LOOP = 1e-3  # least seconds for which a CPU call is repeated in one turn
FLUSH_BYTES = 256 * 2**20


class Span(NamedTuple):
    """Median, and 10th and 90th percentile, of many values."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Span:
    """Return the span of values in any unit."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return Span(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)])


class Times(NamedTuple):
    """Microseconds of one call in each turn; host: the CPU's, to launch one call (on a CPU: the median)."""

    each: tuple[float, ...]
    host: float

    def ratio(self, other: Times) -> Span:
        """Return this call's time over another's, turn by turn: slowdowns of both cancel out."""
        return spread([mine / its for mine, its in zip(self.each, other.each, strict=True)])


class Timer(ABC):
    """Timer of calls on one device.

    Competitors take turns, in a random order for each turn, so that other work on the machine, clock changes and what
    the last call left in caches and threads affect all of them alike. Each competitor is one operation bound to several
    inputs, which it cycles through, each competitor at a different offset, so that no repeat finds its inputs in a
    cache.
    """

    device: torch.device

    @abstractmethod
    def by_turns(
        self, competitors: Mapping[str, Sequence[Call]], seconds: float, *, cold: bool = True
    ) -> dict[str, Times]:
        """Time each for about `seconds`, after a warm-up; cold: flush the GPU's caches before each call."""

    @abstractmethod
    def peak_bytes(self, call: Call) -> int | None:
        """Return the peak device memory that one call adds; None if unknown."""

    def measure(self, calls: Sequence[Call], seconds: float, *, cold: bool = True) -> Times:
        """Time one competitor alone."""
        return self.by_turns({"": calls}, seconds, cold=cold)[""]


def _turns(names: Sequence[str], seconds: float, one_turn: float) -> Iterator[list[tuple[int, str]]]:
    """Yield for each turn the names in random order, each with the index of its inputs; one_turn: its seconds."""
    fewest = 2 if seconds <= 0 else FEWEST_SLOW if one_turn > SLOW else FEWEST
    order = random.Random(0)
    for turn in range(min(MOST, max(fewest, round(seconds * len(names) / max(one_turn, 1e-6))))):
        drawn = [(turn + place, name) for place, name in enumerate(names)]
        order.shuffle(drawn)
        yield drawn


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CudaTimer(Timer):
    """Timer with CUDA events around each call, on the current stream.

    Before each repeat a buffer larger than the L2 cache is read, for as long as the CPU needs to launch the call: so
    the cache holds none of the inputs, and the device never waits for the CPU within the measured interval. The buffer
    is read, not written: writing back dirty lines would be charged to the measured call.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        self._buffer = torch.ones(max(FLUSH_BYTES, 4 * cache) // 4, device=device)
        self._sum = torch.empty((), device=device)
        self._flush()
        flushes = [self._marked(self._flush, 1) for _ in range(5)]
        torch.cuda.synchronize(device)
        self._flush_time = statistics.median(start.elapsed_time(end) for start, end in flushes) / 1e3

    def _flush(self) -> None:
        torch.sum(self._buffer, 0, out=self._sum)

    def _marked(self, call: Call, flushes: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """Enqueue the call between two events, after `flushes` flushes; return the events."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(flushes):
            self._flush()
        start.record()
        call()
        end.record()
        return start, end

    def _host_time(self, call: Call) -> float:
        """Return the seconds that the CPU needs to launch the call on an idle device."""
        times = []
        for _ in range(5):
            torch.cuda.synchronize(self.device)
            before = time.perf_counter()
            call()
            times.append(time.perf_counter() - before)
        torch.cuda.synchronize(self.device)
        return statistics.median(times)

    def by_turns(
        self, competitors: Mapping[str, Sequence[Call]], seconds: float, *, cold: bool = True
    ) -> dict[str, Times]:
        host, flushes, one_turn = {}, {}, 0.0
        for name, calls in competitors.items():
            for _ in range(WARM_UP):
                for call in calls:
                    call()
            host[name] = self._host_time(calls[0])
            flushes[name] = max(1, min(math.ceil(1.5 * host[name] / self._flush_time), 100)) if cold else 0
            start, end = self._marked(calls[0], flushes[name])
            torch.cuda.synchronize(self.device)
            one_turn += start.elapsed_time(end) / 1e3 + flushes[name] * self._flush_time
        marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in competitors}
        with _no_garbage_collection():
            for turn in _turns(list(competitors), seconds, one_turn):
                for number, name in turn:
                    calls = competitors[name]
                    marks[name].append(self._marked(calls[number % len(calls)], flushes[name]))
        torch.cuda.synchronize(self.device)
        return {
            name: Times(tuple(start.elapsed_time(end) * 1e3 for start, end in pairs), host[name] * 1e6)
            for name, pairs in marks.items()
        }

    def peak_bytes(self, call: Call) -> int | None:
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


class CpuTimer(Timer):
    """Timer with a wall clock around each call, or around as many calls as fill one millisecond."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @staticmethod
    def _seconds(call: Call, loops: int) -> float:
        before = time.perf_counter()
        for _ in range(loops):
            call()
        return (time.perf_counter() - before) / loops

    def by_turns(
        self, competitors: Mapping[str, Sequence[Call]], seconds: float, *, cold: bool = True
    ) -> dict[str, Times]:
        loops, one_turn = {}, 0.0
        for name, calls in competitors.items():
            for call in calls:
                call()
            once = self._seconds(calls[0], 1)
            loops[name] = 1 if seconds <= 0 else min(1000, math.ceil(LOOP / max(once, 1e-7)))
            one_turn += once * loops[name]
        each: dict[str, list[float]] = {name: [] for name in competitors}
        with _no_garbage_collection():
            for turn in _turns(list(competitors), seconds, one_turn):
                for number, name in turn:
                    calls = competitors[name]
                    each[name].append(self._seconds(calls[number % len(calls)], loops[name]) * 1e6)
        return {name: Times(tuple(times), statistics.median(times)) for name, times in each.items()}

    def peak_bytes(self, call: Call) -> int | None:
        return None


def timer_for(device: torch.device) -> Timer:
    """Return the timer of a device."""
    return CudaTimer(device) if device.type == "cuda" else CpuTimer(device)
