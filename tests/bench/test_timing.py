"""The timers on a clock of their own: what they measure, whose turn it is, how often they flush."""

from __future__ import annotations

import types

import pytest
import torch

from bench.core import timing
from bench.core.timing import CpuTimer, CudaTimer, spread


class Machine:
    """A device on which time passes when something is called, and a processor that needs `host` for each call."""

    def __init__(self, host: float) -> None:
        self.now, self.wall, self.host, self.flushes = 0.0, 0.0, host, 0

    def flush(self, *_, **__) -> None:
        self.flushes += 1
        self.now += 0.2  # milliseconds

    def call(self, milliseconds: float):
        def run() -> None:
            self.now += milliseconds
            self.wall += self.host

        return run


@pytest.fixture
def machine(monkeypatch):
    made = Machine(host=1e-3)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = made.now

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: types.SimpleNamespace(L2_cache_size=1024))
    monkeypatch.setattr(timing, "FLUSH_BYTES", 4096)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.wall)
    monkeypatch.setattr(torch, "sum", made.flush)
    return made


def test_the_flush_outlasts_the_processor_and_is_not_measured(machine):
    timer = CudaTimer(torch.device("cpu"))
    machine.flushes = 0
    found = timer.measure([machine.call(0.05)], seconds=0.01)
    assert found.each == pytest.approx([50] * len(found.each))
    assert found.host == pytest.approx(1000)
    # 1.5 x 1 ms of the processor are 8 flushes of 0.2 ms, before each repeat and before the one that sets their number
    assert machine.flushes == 8 * (len(found.each) + 1)


def test_a_call_much_longer_than_its_launch_is_still_flushed(machine):
    machine.host = 0.0
    timer = CudaTimer(torch.device("cpu"))
    machine.flushes = 0
    found = timer.measure([machine.call(5.0)], seconds=0.1)
    assert machine.flushes == len(found.each) + 1


def test_warm_calls_are_not_flushed(machine):
    timer = CudaTimer(torch.device("cpu"))
    machine.flushes = 0
    timer.measure([machine.call(5.0)], seconds=0.1, cold=False)
    assert machine.flushes == 0


def test_repeats_go_round_the_inputs(machine):
    calls = [machine.call(milliseconds) for milliseconds in (1.0, 2.0, 3.0)]
    found = CudaTimer(torch.device("cpu")).measure(calls, seconds=0.06)
    assert spread(found.each) == pytest.approx((2000, 1000, 3000))
    assert 10 <= len(found.each) <= 100


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_competitors_take_turns_and_what_slows_the_machine_cancels_out(machine, kind, monkeypatch):
    """One call takes twice as long as the other, on a machine that gets ten times slower under way."""
    order: list[str] = []

    def call(name: str, milliseconds: float):
        def run() -> None:
            order.append(name)
            slower = 10 if len(order) > 60 else 1
            machine.now += slower * milliseconds
            machine.wall += slower * milliseconds / 1e3

        return run

    timer = CudaTimer(torch.device("cpu")) if kind == "cuda" else CpuTimer(torch.device("cpu"))
    found = timer.by_turns({"a": [call("a", 2.0)], "b": [call("b", 4.0)]}, seconds=0.2, cold=False)
    assert found["b"].ratio(found["a"]) == pytest.approx((2.0, 2.0, 2.0))
    assert max(found["a"].each) > 5 * min(found["a"].each)
    turns = len(found["a"].each)
    taken = [order[-2 * turns :][2 * i : 2 * i + 2] for i in range(turns)]
    assert all(sorted(pair) == ["a", "b"] for pair in taken)  # each once a turn
    assert {tuple(pair) for pair in taken} == {("a", "b"), ("b", "a")}  # in an order that changes


def test_short_cpu_calls_are_repeated_within_a_turn(machine):
    calls = []

    def call() -> None:
        calls.append(None)
        machine.wall += 1e-5

    found = CpuTimer(torch.device("cpu")).measure([call], seconds=0.05)
    assert found.each == pytest.approx([10.0] * len(found.each))
    assert len(calls) == pytest.approx(100 * len(found.each), abs=10)  # a turn lasts a millisecond


def test_median_and_percentiles():
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 100.0]) == (6.0, 2.0, 10.0)
