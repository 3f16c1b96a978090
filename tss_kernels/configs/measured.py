"""What was measured on GPUs, in the place of predictions: written by `python -m bench.gpu.adopt RESULT.json`."""

from __future__ import annotations

from tss_kernels.configs.table import ALWAYS, Bound, Crossover, Kind, Masking

__all__ = ["ALWAYS", "CUDA", "PREFERENCES", "TRITON"]

Crossovers = dict[tuple[Masking, Kind, bool, Bound], Crossover]

# Crossovers of the Triton products, by table.
TRITON: dict[str, Crossovers] = {}

# Crossovers of the CUDA C++ products, by table.
CUDA: dict[str, Crossovers] = {}

# Backends by operation, the first preferred, and on what basis.
PREFERENCES: dict[str, tuple[tuple[str, ...], str]] = {}
