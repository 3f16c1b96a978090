"""Time per call on tiny CPU tensors, where only the way to the arithmetic costs: python bench/call_overhead.py

The best of many short repeats in processor time of one thread, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

import torch

import tss_kernels
from tss_kernels.gated_linear import reference
from tss_kernels.gated_linear.api import forward_operator

ROWS, IN, OUT = 4, 8, 8
CALLS, REPEATS = 500, 40


def calls() -> dict[str, Callable[[], object]]:
    """What is timed, by name; gradients are those of x and scores, or of x and weight."""
    x = torch.randn(ROWS, IN)
    weight, scores = torch.randn(OUT, IN), torch.randn(OUT, IN)
    tracked, trained = x.clone().requires_grad_(), scores.clone().requires_grad_()
    trained_weight, dy = weight.clone().requires_grad_(), torch.ones(ROWS, OUT)
    layer = tss_kernels.GatedAdapterLinear(IN, OUT)

    def eager(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, torch.where(scores >= 0.0, weight, 0))

    def backward(y: torch.Tensor) -> None:
        torch.autograd.backward(y, dy)

    return {
        "F.linear": lambda: torch.nn.functional.linear(x, weight),
        "where, then F.linear": lambda: eager(x),
        "reference.forward (packs the gates too)": lambda: reference.forward(x, weight, scores, None, 0.0),
        "registered operator": lambda: forward_operator(x, weight, scores, None, 0.0, "reference"),
        "gated_linear, no gradient": lambda: tss_kernels.gated_linear(x, weight, scores),
        "gated_linear, gradient recorded": lambda: tss_kernels.gated_linear(tracked, weight, trained),
        "GatedAdapterLinear, gradient recorded": lambda: layer(tracked),
        "F.linear forward + backward": lambda: backward(torch.nn.functional.linear(tracked, trained_weight)),
        "gated_linear forward + backward": lambda: backward(tss_kernels.gated_linear(tracked, weight, trained)),
    }


def main() -> None:
    """Prints microseconds per call, the repeats of all calls interleaved."""
    torch.set_num_threads(1)
    timed = calls()
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(REPEATS):
        for name, call in timed.items():
            best[name] = min(best[name], timeit.timeit(call, timer=time.thread_time, number=CALLS) / CALLS * 1e6)
    for name, microseconds in best.items():
        print(f"{microseconds:7.1f} us  {name}")


if __name__ == "__main__":
    main()
