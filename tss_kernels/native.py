"""What the files of the native backend share: the compiled module, and how tensors are described to it.

Its kernels take addresses, so everything that they rely on (devices, dtypes, shapes, contiguous memory) is seen to in
Python. They follow `torch.get_num_threads()`, and no result depends on that number.
"""

from __future__ import annotations

import torch

from tss_kernels import _native as kernels

KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}

__all__ = ["KINDS", "described", "empty_packed", "kernels"]


def empty_packed(rows: int, columns: int) -> torch.Tensor:
    """Room for the packed gates of a matrix (rows, columns): uint8 (rows, ceil(columns / 8))."""
    return torch.empty((rows, (columns + 7) // 8), dtype=torch.uint8, device="cpu")


def described(what: str) -> str:
    """What runs, with the instruction set and the number of threads that it may use."""
    return f"{what}; {kernels.instruction_set()}, up to {torch.get_num_threads()} threads"
