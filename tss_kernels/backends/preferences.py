"""Preferred backends of each operation, by device type and shape, with the basis; the first that can run is used."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from tss_kernels.backends.registry import HALVES, IMPORTANCE
from tss_kernels.backends.tables.table import NARROW


class Preference(NamedTuple):
    """A backend and the basis of its rank: "measured ..." or "predicted ..."."""

    backend: str
    basis: str


ShapeClass = Literal["down", "up", "wide", "adapter", "any"]
MANY = 1 << 62  # rows in compiled code, which would be recompiled for other numbers of rows


class Line(NamedTuple):
    """Backends that CUDA devices try, in order, up to `rows` rows; measured lines replace these one by one."""

    operations: tuple[str, ...]
    shapes: ShapeClass
    rows: int
    backends: tuple[str, ...]
    basis: str


# A launch from Python takes about a microsecond with the compiled extension and several times that with Triton's
# launcher. If the kernel itself takes less than either, the launch decides.
_LAUNCH = "predicted: bound by memory and, when small, by the launch, which is shorter than Triton's"
_ONE_LAUNCH = "predicted: addresses are passed with the launch, Triton needs a table copied to the device"
_NOT_COUNTED = "predicted: pipelined tiles by Hopper's own matrix instructions; no counts for these sizes or dtypes"
_MANY_TASKS = "predicted: tiles by Hopper's own matrix instructions, which the extension's tiles lack here; no counts"
_PRODUCTS, _ADAPTER = ("gated_linear", "packed_linear"), ("gated_adapter",)
_CUDA, _TRITON = ("cuda", "triton"), ("triton", "cuda")

# Predicted by `bounds.py` for Hopper with the tiles of `tile_choice.py`, at the sizes in SIZES; other architectures use
# the same until they are measured. Each basis is for the forward pass by packed gates; the backward pass runs on the
# backend of its forward pass.
LINES: tuple[Line, ...] = (
    Line(_PRODUCTS, "down", 1024, _CUDA, "predicted: 2.8 against 3.4 us at 512 rows"),
    Line(_PRODUCTS, "down", 5888, _TRITON, "predicted: 3.8 against 4.8 us at 4,096 rows"),
    Line(_PRODUCTS, "down", MANY, _CUDA, "predicted: 5.2 against 6.1 us at 8,192 rows"),
    Line(_PRODUCTS, "up", 1024, _CUDA, "predicted: 1.3 against 1.6 us at 128 rows"),
    Line(_PRODUCTS, "up", MANY, _TRITON, "predicted: 35.2 against 40.0 us at 65,536 rows"),
    Line(_PRODUCTS, "wide", MANY, _CUDA, "predicted: 4.8 against 7.4 us at 512 rows"),
    Line(_ADAPTER, "adapter", 9472, _TRITON, "predicted: 6.5 against 10.0 us at 2,048 rows"),
    Line(_ADAPTER, "adapter", MANY, _CUDA, "predicted: 15.6 against 16.5 us at 10,240 rows"),
    Line((*_PRODUCTS, *_ADAPTER), "any", MANY, _TRITON, _NOT_COUNTED),
    Line(("multi_task_linear", "multi_task_adapter"), "any", MANY, _TRITON, _MANY_TASKS),
    Line(("pack_gates", "unpack_gates", *IMPORTANCE), "any", MANY, _CUDA, _LAUNCH),
    Line(("soft_masked_adamw_",), "any", MANY, _CUDA, _ONE_LAUNCH),
)  # fmt: skip
# (in, out) for which the lines of a class are predicted; for the adapter (d, bottleneck).
SIZES: dict[ShapeClass, tuple[int, int]] = {
    "down": (1024, 64), "up": (64, 1024), "wide": (1024, 1024), "adapter": (1024, 64)
}  # fmt: skip


def _in_order(line: Line) -> tuple[Preference, ...]:
    first, *others = line.backends
    return (Preference(first, line.basis), *(Preference(other, f"where {first} cannot run") for other in others))


# By operation and shape class, in ascending order of rows.
CUDA: dict[tuple[str, ShapeClass], tuple[tuple[int, tuple[Preference, ...]], ...]] = {}
for _line in LINES:
    for _op in _line.operations:
        CUDA[_op, _line.shapes] = (*CUDA.get((_op, _line.shapes), ()), (_line.rows, _in_order(_line)))


def _native(times: str) -> tuple[Preference, ...]:
    """Prefer native, by `times` at all dtypes and shapes measured: 4 rows of 8 to 2,048 of 1,024; AVX2, torch 2.13."""
    return (Preference("native", f"measured with AVX2 on one core: {times} as fast as the reference"),)


CPU: dict[str, tuple[Preference, ...]] = {
    "gated_linear": _native("1.05 (many rows) to 2.9 times (few)"),
    "gated_adapter": _native("1.05 to 1.3 times"),
    "packed_linear": _native("2.7 to 5.9 times"),
    "pack_gates": _native("2 to 8 times"),
    "unpack_gates": _native("3.5 to 15 times"),
    "normalize_importance": _native("1.8 to 6 times"),
    "accumulate_importance_": _native("1.2 to 2.2 times"),
    "update_importance_": _native("1.8 to 8 times"),
    "soft_masked_adamw_": _native("2.3 to 14 times"),
    "multi_task_linear": _native("1.2 (many rows of one task) to 29 times (one row of each)"),
    "multi_task_adapter": _native("1.2 to 30 times"),
}


def shape_class(op: str, dtype: torch.dtype, shape: tuple[int, ...]) -> ShapeClass:
    """Return the class of (rows, in, out), or (rows, d, bottleneck) for the adapter; "any" if nothing is counted."""
    if len(shape) != 3 or dtype not in HALVES or shape[1] % 16 or shape[2] % 16:
        return "any"
    if op == "gated_adapter":
        return "adapter" if shape[2] <= NARROW else "any"
    if op not in _PRODUCTS:
        return "any"
    if shape[1] <= NARROW:
        return "up"
    return "down" if shape[2] <= NARROW else "wide"


def preferences(
    op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = ()
) -> tuple[Preference, ...]:
    """Return the backends to try for an operation before the reference, in order; a pure function."""
    if device.type != "cuda":
        return CPU.get(op, ()) if device.type == "cpu" else ()
    lines = CUDA[op, shape_class(op, dtype, shape)]
    for rows, wanted in lines:
        if not shape or shape[0] <= rows:
            return wanted
    return lines[-1][1]
