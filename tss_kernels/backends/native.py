"""Shared by the files of the native backend: the compiled module.

Its kernels take addresses, so Python ensures everything that they rely on (devices, dtypes, shapes, contiguous memory).
They use `torch.get_num_threads()` threads, and no result depends on that number.
"""

from __future__ import annotations

import ctypes
import os

import torch

from tss_kernels import _native as kernels

__all__ = ["described", "kernels", "torchs_team"]


def described(what: str) -> str:
    """Describe what runs, with the instruction set and the number of threads that it may use."""
    return f"{what}; {kernels.instruction_set()}, up to {torch.get_num_threads()} threads"


def torchs_team() -> int:
    """Return the address of GOMP_parallel in the OpenMP runtime that PyTorch's own CPU kernels use; 0 if there is none.

    That runtime's threads spin for a while after each PyTorch operation: other threads would find no processor free.
    """
    try:  # finds the library by name among the loaded ones; the symbol is searched in it and in its dependencies
        library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return 0


kernels.use_team(torchs_team())
