"""What the files of the native backend share: the compiled module.

Its kernels take addresses, so everything that they rely on (devices, dtypes, shapes, contiguous memory) is seen to in
Python. They follow `torch.get_num_threads()`, and no result depends on that number.
"""

from __future__ import annotations

import ctypes
import os

import torch

from tss_kernels import _native as kernels

__all__ = ["described", "kernels", "torchs_team"]


def described(what: str) -> str:
    """What runs, with the instruction set and the number of threads that it may use."""
    return f"{what}; {kernels.instruction_set()}, up to {torch.get_num_threads()} threads"


def torchs_team() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that PyTorch's own CPU kernels use; 0 where there is none.

    Its threads spin for a while after each operation of PyTorch's: threads beside them would find no processor free.
    """
    try:  # by its name among the libraries that are loaded; the symbol is looked up in it and in what it needs
        library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return 0


kernels.use_team(torchs_team())
