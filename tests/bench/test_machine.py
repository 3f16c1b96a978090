"""Whether a machine is named busy, and the digest that says of which code a number is."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from bench.core import machine
from bench.core.machine import Load, LoadWatch, sources_digest, why_busy


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.mark.parametrize(
    ("load", "spread", "says"),
    [
        (Load(2.0, 0.1), 0.1, None),  # our own two threads
        (Load(3.0, 1.1), 0.1, "others used 1.1 of 2 cores"),
        (Load(2.0, 0.0), 0.8, "turns spread over 80% of the median"),
        (Load(3.5, None), 0.1, "load average 3.5 with 2 threads of our own"),
        (Load(2.0, None), 0.1, None),
        (Load(None, None), 0.1, None),
    ],
)
def test_what_names_a_busy_machine(load, spread, says):
    assert why_busy(load, spread, 2) == says


def test_both_reasons_are_said():
    assert why_busy(Load(4.0, 1.5), 0.9, 2) == "others used 1.5 of 2 cores, turns spread over 90% of the median"


@pytest.mark.parametrize(("own", "others"), [(4.0, 0.0), (1.0, 1.5), (0.0, 2.0), (5.0, 0.0)])
def test_what_others_used_is_what_we_did_not(monkeypatch, own, others):
    """In two seconds two cores were busy, for `own` processor seconds of this process."""
    state = {"now": 10.0, "busy": 100.0, "own": 5.0}
    monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: state["now"]))
    monkeypatch.setattr(machine, "_busy_seconds", lambda: state["busy"])
    monkeypatch.setattr(machine, "_own_seconds", lambda: state["own"])
    watch = LoadWatch()
    state.update(now=12.0, busy=104.0, own=5.0 + own)
    assert watch.load().others == others


def test_a_stretch_shorter_than_the_systems_ticks_says_nothing_of_others(monkeypatch):
    monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: 10.0))
    assert LoadWatch().load().others is None


def test_the_digest_follows_the_sources(monkeypatch):
    before = sources_digest()
    assert sources_digest() == before
    monkeypatch.setattr(machine, "SOURCES", ("tss_kernels",))
    assert sources_digest() != before
