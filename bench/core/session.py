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

PER_VARIANT = 0.15  # seconds of repeats; checks and compilations come on top
PER_MODEL = 3.0  # of whole models and processes


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


class Session:
    """What measuring needs.

    Args:
        device: "cuda" or "cpu".
        small: tiny sizes, whose times mean nothing.
        threads: of the CPU; None for all cores.
        seconds: of each variant's repeats; None: the group's own.
    """

    def __init__(self, device: str, small: bool, threads: int | None, seconds: float | None) -> None:
        self.device = torch.device(device)
        self.threads = pin(threads)
        self.sizes: Sizes = tiny(self.device) if small else published(self.device)
        self.timer = timer_for(self.device)
        self._seconds = seconds

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured once."""
        return measure_ceilings(self.timer, self.sizes.tiny)

    def seconds_for(self, group: str) -> float:
        """Of one variant's repeats."""
        if self._seconds is not None:
            return self._seconds
        if self.sizes.tiny:
            return 0.0
        return PER_MODEL if group in WHOLE_MODELS | PROCESSES else PER_VARIANT
