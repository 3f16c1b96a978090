"""One run of benchmarks in one process: its device, threads, sizes, ceilings, and the file that results go to."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.measure.case import Case
from bench.measure.cases import GROUPS, MODELS, STARTS
from bench.measure.cases.sizes import Sizes, published, tiny
from bench.measure.ceilings import measure_ceilings, read_ceilings
from bench.measure.environment import file_name, probe
from bench.measure.report import Report
from bench.measure.revision import revision, sources
from bench.measure.runner import Budget, Clocked, Record, check_variant, clock_variants, describe, same_case
from bench.measure.timing import timer_for

PART = "measure.{}"
PER_VARIANT = 0.15  # seconds of repeats; checks and compilations come on top
PER_CANDIDATE = 0.05  # of dispatch, which has many
PER_MODEL = 3.0  # of whole models and processes
NAMES = tuple(name for name in GROUPS if name != "dispatch")  # dispatch is for tables, not for readers
RESULTS = Path(__file__).resolve().parents[1] / "results"


def cores() -> list[int]:
    """The cores that this process may use."""
    if not hasattr(os, "sched_getaffinity"):  # not on macOS
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0))


def pin(threads: int | None) -> int:
    """Bind this process to so many of its cores (all, if None), one PyTorch thread each; returns the number.

    Raises:
        ValueError: there are fewer cores.
    """
    if not hasattr(os, "sched_setaffinity"):  # not on macOS: threads alone are set
        torch.set_num_threads(threads or torch.get_num_threads())
        return torch.get_num_threads()
    usable = cores()
    wanted = len(usable) if threads is None else threads
    if not 1 <= wanted <= len(usable):
        raise ValueError(f"{wanted} threads asked for, but this process may use 1 to {len(usable)}")
    os.sched_setaffinity(0, usable[:wanted])
    torch.set_num_threads(wanted)
    return wanted


def seconds_for(group: str, sizes: Sizes) -> float:
    """Seconds of repeats of one variant."""
    if sizes.tiny:
        return 0.0
    return PER_MODEL if group in MODELS | STARTS else PER_CANDIDATE if group == "dispatch" else PER_VARIANT


class Session:
    """Measures cases and adds them to a result file; what it already has of another case stays.

    Args:
        device: "cuda" or "cpu".
        small: tiny sizes, whose times mean nothing.
        threads: of the CPU; None for all cores.
        out: the file; None: `bench/results/<machine>-<date>.json` of this checkout.
        seconds: of each variant's repeats; None: the group's own.
    """

    def __init__(
        self, device: str, *, small: bool = False, threads: int | None = None, out: Path | None = None,
        seconds: float | None = None,
    ) -> None:  # fmt: skip
        self.device = torch.device(device)
        self.threads = pin(threads)
        self.sizes = tiny(self.device) if small else published(self.device)
        self.seconds = seconds
        self.machine = probe() | {"threads": self.threads, "device": self.device.type}
        self.report = Report(out or RESULTS / file_name(self.machine, self.device.type, small))
        self.timer = timer_for(self.device)
        self._measured: dict[str, Clocked] = {}
        self._records: list[Record] = []
        commit, changed = revision()
        self._stamp: dict[str, Any] = {
            "revision": commit, "uncommitted_changes": changed, "sources": sources(), "date": str(date.today()),
            "tiny": small,
        }  # fmt: skip

    @cached_property
    def ceilings(self) -> Record:
        """Measured once, and kept in the file."""
        self.report.set_machine(self.machine)
        measured = measure_ceilings(self.timer, self.sizes.tiny)
        self.report.update(PART.format("ceilings"), status="done", result=measured, **self._stamp)
        return measured

    def measure(self, group: str, case: Case, names: Sequence[str]) -> Clocked:
        """The variants of these names, checked and then timed by turns; once, however often it is asked for."""
        key = f"{group} {case} {case.curve}"
        if key not in self._measured:
            judged: dict[Any, Any] = {}
            checked = {
                variant.name: check_variant(case, variant, self.device, judged)
                for variant in case.variants
                if variant.name in names
            }
            judged.clear()
            budget = Budget(seconds_for(group, self.sizes) if self.seconds is None else self.seconds, time.monotonic())
            found = clock_variants(case, checked, self.timer, budget, read_ceilings(self.ceilings))
            self._records.append(describe(case) | {"variants": found.records} | self._stamp)
            self._keep(group, self._records[-1])
            self._measured[key] = found
        return self._measured[key]

    def records(self) -> list[Record]:
        """Of every case that was measured here, in that order."""
        return list(self._records)

    def _keep(self, group: str, record: Record) -> None:
        part = PART.format(group)
        cases = (self.report.part(part).get("result") or {}).get("cases", [])
        at = next((i for i, known in enumerate(cases) if same_case(known, record)), len(cases))
        cases[at : at + 1] = [record]
        self.report.update(part, status="done", result={"cases": cases}, **self._stamp)
