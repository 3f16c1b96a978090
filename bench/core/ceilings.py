"""Measured limits of this machine: copy bandwidth and rates of large products."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.core.measure import Ceilings
from bench.core.timing import Timer, spread

COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
SIDE = {"cuda": 8192, "cpu": 1024}  # size of the square matrices
# A CPU without 16-bit units takes seconds for one product in bfloat16, and minutes in float16, which nothing here uses.
DTYPES = {"cuda": (torch.bfloat16, torch.float16, torch.float32), "cpu": (torch.bfloat16, torch.float32)}


def _copy(device: torch.device, count: int) -> Callable[[], object]:
    source = torch.randn(count // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(device: torch.device, dtype: torch.dtype, side: int) -> Callable[[], object]:
    # Random data: a product of zeros runs faster than a real one.
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right


def measure_ceilings(timer: Timer, tiny: bool) -> Ceilings:
    """Measure copies, counting reads and writes, and square products, float32 without TF32."""
    kind = timer.device.type
    count, side, seconds = (2**16, 32, 0.0) if tiny else (COPY_BYTES[kind], SIDE[kind], 0.5)

    def rate(amount: float, call: Callable[[], object]) -> float:
        return amount / (spread(timer.measure([call], seconds, cold=False).each).median / 1e6)

    flops = {
        str(dtype).removeprefix("torch."): rate(2 * side**3, _product(timer.device, dtype, side))
        for dtype in DTYPES[kind]
    }
    return Ceilings(rate(2 * count, _copy(timer.device, count)), flops)
