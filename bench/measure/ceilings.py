"""What this machine can do at most, by its own measurement: copy bandwidth, rates of large products, a launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.measure.runner import Ceilings
from bench.measure.timing import Timer, Times, spread

COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices
# A CPU without 16-bit units needs seconds for one product in bfloat16, and minutes in float16, which nothing here uses.
DTYPES = {"cuda": (torch.bfloat16, torch.float16, torch.float32), "cpu": (torch.bfloat16, torch.float32)}


def _copy(device: torch.device, count: int) -> Callable[[], object]:
    source = torch.randn(count // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(device: torch.device, dtype: torch.dtype, side: int) -> Callable[[], object]:
    # Random data: a product of zeros runs faster than a real one.
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right


def _record(times: Times) -> dict[str, float]:
    return {f"{name}_us": value for name, value in spread(times.each)._asdict().items()} | {"host_us": times.host}


def measure_ceilings(timer: Timer, tiny: bool) -> dict[str, Any]:
    """Bytes per second of a copy, counted both ways; operations per second of square products by dtype, float32
    without TF32; microseconds of the smallest kernel on the device, and of the processor to launch it."""
    kind = timer.device.type
    count, side, seconds = (2**16, 32, 0.0) if tiny else (COPY_BYTES[kind], SIDE[kind], 0.5)
    copied = timer.measure([_copy(timer.device, count)], seconds, cold=False)
    moved = spread(copied.each)
    found: dict[str, Any] = {
        "bytes_per_second": 2 * count / (moved.median / 1e6),
        "copy": {"bytes": 2 * count, **_record(copied)},
        "flops_per_second": {},
        "product": {"side": side},
    }
    for dtype in DTYPES[kind]:
        name = str(dtype).removeprefix("torch.")
        product = timer.measure([_product(timer.device, dtype, side)], seconds, cold=False)
        found["flops_per_second"][name] = 2 * side**3 / (spread(product.each).median / 1e6)
        found["product"][name] = _record(product)
    one = torch.ones(1, device=timer.device)
    found["smallest_kernel"] = _record(timer.measure([lambda: one.add_(1.0)], seconds, cold=not tiny))
    return found


def read_ceilings(measured: dict[str, Any] | None) -> Ceilings | None:
    """The ceilings out of their record, None where there is none."""
    if not measured or "bytes_per_second" not in measured:
        return None
    return Ceilings(measured["bytes_per_second"], measured["flops_per_second"])
