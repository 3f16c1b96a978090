"""What the files of the native backend share: the compiled module.

Its kernels take addresses, so everything that they rely on (devices, dtypes, shapes, contiguous memory) is seen to in
Python. They follow `torch.get_num_threads()`, and no result depends on that number.
"""

from __future__ import annotations

import torch

from tss_kernels import _native as kernels

__all__ = ["described", "kernels"]


def described(what: str) -> str:
    """What runs, with the instruction set and the number of threads that it may use."""
    return f"{what}; {kernels.instruction_set()}, up to {torch.get_num_threads()} threads"
