"""Predicted time of a call by each backend: `bounds.py` applied to what the tables let each backend run."""

from __future__ import annotations

import torch

from tss_kernels.backends.bounds import CHIPS, Chip, Prediction
from tss_kernels.backends.registry import HALVES
from tss_kernels.backends.tables import TABLES, Table, materialises
from tss_kernels.backends.tables.cuda import with_crossovers
from tss_kernels.backends.tile_choice import predict

__all__ = ["VENDOR", "Prediction", "architecture_of", "predicted"]

VENDOR = "the vendor's product on W * g"


def architecture_of(device: torch.device) -> str:
    """Return the architecture's name as in the tables, or the device type if it is not a CUDA device."""
    if device.type != "cuda":
        return device.type
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def _of_backend(
    chip: Chip, table: Table, op: str, backend: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> Prediction | None:
    kernel = backend
    if op != "gated_adapter" and materialises(table, "forward", dtype, *shape, aligned=True)[0]:
        kernel = "vendor"
    return predict(chip, op, kernel, shape)


def predicted(
    op: str, architecture: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> tuple[dict[str, Prediction] | None, str]:
    """Predict the forward pass by each backend and by the vendor's route; also return a note about the counts.

    architecture: for example "sm_90". shape: (rows, in, out), for the adapter (rows, d, bottleneck). The prediction is
    None if no kernel was counted, and the note says so.
    """
    chip = CHIPS.get(architecture)
    if chip is None:
        return None, f"no counts for {architecture}"
    if dtype not in HALVES or len(shape) != 3:
        return None, f"no counts for {op} in {dtype}"
    tables = {"triton": TABLES[architecture], "cuda": with_crossovers(architecture)}
    found = {name: _of_backend(chip, table, op, name, dtype, shape) for name, table in tables.items()}
    found[VENDOR] = predict(chip, op, "vendor", shape)
    known = {name: one for name, one in found.items() if one is not None}
    if not known:
        return None, f"no counts for {op} of this shape"
    return known, f"counted for {chip.name}, not measured; expect up to 1.6 times that"
