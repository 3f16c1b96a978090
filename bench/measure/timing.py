"""Time and memory of one call: CUDA events on a GPU, a wall clock on a CPU, behind one class."""

from __future__ import annotations

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Call = Callable[[], object]

WARM_UP = 3
FEWEST, MOST = 10, 100  # repeats
FLUSH_BYTES = 256 * 2**20


class Timing(NamedTuple):
    """Microseconds of one call over many repeats.

    median, low, high: of the device's time, low and high the 10th and 90th percentile.
    host: the processor's median time to hand the call over; on a CPU the same as the median.
    """

    median: float
    low: float
    high: float
    host: float
    repeats: int


def summary(device_times: Sequence[float], host: float) -> Timing:
    """The statistics of the repeats' times, in the unit that they have."""
    ordered = sorted(device_times)
    last = len(ordered) - 1
    low, high = ordered[round(0.1 * last)], ordered[round(0.9 * last)]
    return Timing(statistics.median(ordered), low, high, host, len(ordered))


class Timer(ABC):
    """Times calls on one device.

    `measure` takes the same operation bound to several inputs and goes round them, so that no repeat finds its own
    inputs in a cache.
    """

    device: torch.device

    @abstractmethod
    def measure(self, calls: Sequence[Call], seconds: float, *, cold: bool = True) -> Timing:
        """Repeats the calls by turns for about so many seconds, after a warm-up; cold: with the caches flushed."""

    @abstractmethod
    def peak_bytes(self, call: Call) -> int | None:
        """Device memory that one call takes beyond what was there before it; None where that cannot be said."""


class CudaTimer(Timer):
    """CUDA events around each call, on the current stream.

    Before each repeat a buffer larger than the L2 cache is read, as often as the processor needs to hand the call over:
    so the cache holds none of the inputs, and the device never waits for the processor inside the measured stretch.
    The buffer is read, not written: dirty lines would be written back at the measured call's cost.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        self._buffer = torch.ones(max(FLUSH_BYTES, 4 * cache) // 4, device=device)
        self._sum = torch.empty((), device=device)
        self._flush()
        self._flush_time = statistics.median(self._elapsed([self._flush] * 5, before=self._flush)) / 1e6

    def _flush(self) -> None:
        torch.sum(self._buffer, 0, out=self._sum)

    def _elapsed(self, calls: Sequence[Call], before: Call) -> list[float]:
        """Microseconds of each call on the device, `before` handed over ahead of each."""
        marks = []
        for call in calls:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before()
            start.record()
            call()
            end.record()
            marks.append((start, end))
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) * 1e3 for start, end in marks]

    def _host_time(self, call: Call) -> float:
        """Seconds that the processor needs to hand the call over to an idle device."""
        times = []
        for _ in range(5):
            torch.cuda.synchronize(self.device)
            before = time.perf_counter()
            call()
            times.append(time.perf_counter() - before)
        torch.cuda.synchronize(self.device)
        return statistics.median(times)

    def measure(self, calls: Sequence[Call], seconds: float, *, cold: bool = True) -> Timing:
        for _ in range(WARM_UP):
            for call in calls:
                call()
        host = self._host_time(calls[0])
        flushes = math.ceil(1.5 * host / self._flush_time) if cold else 0

        def before() -> None:
            for _ in range(max(1, min(flushes, 100)) if cold else 0):
                self._flush()

        one = self._elapsed(calls[:1], before)[0] / 1e6 + flushes * self._flush_time
        repeats = min(MOST, max(FEWEST, round(seconds / max(one, 1e-6))))
        times = self._elapsed([calls[turn % len(calls)] for turn in range(repeats)], before)
        return summary(times, host * 1e6)

    def peak_bytes(self, call: Call) -> int | None:
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


class CpuTimer(Timer):
    """A wall clock around each call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def measure(self, calls: Sequence[Call], seconds: float, *, cold: bool = True) -> Timing:
        for call in calls:
            call()
        times, end = [], time.perf_counter() + seconds
        fewest = FEWEST if seconds > 0 else 2  # no time at all: only to see that it runs
        while len(times) < fewest or (len(times) < MOST and time.perf_counter() < end):
            before = time.perf_counter()
            calls[len(times) % len(calls)]()
            times.append((time.perf_counter() - before) * 1e6)
        return summary(times, statistics.median(times))

    def peak_bytes(self, call: Call) -> int | None:
        return None


def timer_for(device: torch.device) -> Timer:
    """The timer of a device."""
    return CudaTimer(device) if device.type == "cuda" else CpuTimer(device)
