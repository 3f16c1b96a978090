"""One run of benchmarks in one process: its device, threads, sizes and ceilings."""

from __future__ import annotations

import os
from functools import cached_property

import torch

from bench.cases import PROCESSES, WHOLE_MODELS
from bench.cases.sizes import Sizes, published, tiny
from bench.core.ceilings import measure_ceilings
from bench.core.machine import cores
from bench.core.measure import Ceilings
from bench.core.timing import timer_for

PER_VARIANT = 0.15  # seconds of repeats, in addition to checks and compilations
PER_MODEL = 3.0  # the same for whole models and processes


def pin(threads: int | None) -> int:
    """Bind this process to `threads` of its cores (None: all), with one PyTorch thread each; return the number.

    Raises:
        ValueError: there are fewer cores.
    """
    if not hasattr(os, "sched_setaffinity"):  # not on macOS: only set the number of threads
        torch.set_num_threads(threads or torch.get_num_threads())
        return torch.get_num_threads()
    usable = cores()
    wanted = len(usable) if threads is None else threads
    if not 1 <= wanted <= len(usable):
        raise ValueError(f"{wanted} threads asked for, but this process may use 1 to {len(usable)}")
    os.sched_setaffinity(0, usable[:wanted])
    torch.set_num_threads(wanted)
    return wanted


class Session:
    """State of a benchmark run.

    Args:
        device: "cuda" or "cpu".
        small: use tiny sizes, whose times mean nothing.
        threads: CPU threads; None for all cores.
        seconds: for each variant's repeats; None uses the group's default.
    """

    def __init__(self, device: str, small: bool, threads: int | None, seconds: float | None) -> None:
        self.device = torch.device(device)
        self.threads = pin(threads)
        self.sizes: Sizes = tiny(self.device) if small else published(self.device)
        self.timer = timer_for(self.device)
        self._seconds = seconds

    @cached_property
    def ceilings(self) -> Ceilings:
        """Ceilings of this machine, measured once."""
        return measure_ceilings(self.timer, self.sizes.tiny)

    def seconds_for(self, group: str) -> float:
        """Return the seconds for one variant's repeats."""
        if self._seconds is not None:
            return self._seconds
        if self.sizes.tiny:
            return 0.0
        return PER_MODEL if group in WHOLE_MODELS | PROCESSES else PER_VARIANT
