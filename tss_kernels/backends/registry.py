"""The backends: their operations, devices and dtypes, and why one cannot run here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch

# Operation -> folder, whose files are its backends.
FOLDERS = {
    "gated_linear": "gated_linear",
    "gated_adapter": "gated_adapter",
    "pack_gates": "gates",
    "unpack_gates": "gates",
    "packed_linear": "gated_linear",
    "normalize_importance": "importance",
    "accumulate_importance_": "importance",
    "update_importance_": "importance",
    "soft_masked_adamw_": "adamw",
    "multi_task_linear": "multi_task",
    "multi_task_adapter": "multi_task",
}
OPERATIONS = tuple(FOLDERS)
BACKENDS = ("reference", "native", "triton", "cuda")
HALVES = (torch.float16, torch.bfloat16)
IMPORTANCE = ("normalize_importance", "accumulate_importance_", "update_importance_")


class Obstacle(NamedTuple):
    """Why a backend cannot run something, and what would change that."""

    reason: str
    remedy: str


class Compiled(NamedTuple):
    """What a compiled backend runs: its operations, the dtypes of all of them, and additional dtypes of some."""

    operations: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    further: dict[str, tuple[torch.dtype, ...]]
    computes: str


# Packed gates are bytes, and importance is computed in float64.
_FURTHER: dict[str, tuple[torch.dtype, ...]] = {
    "unpack_gates": (torch.uint8,),
    **dict.fromkeys(IMPORTANCE, (torch.float64,)),
}
_THREE = "float32, float16 and bfloat16"
COMPILED = {
    "native": Compiled(
        OPERATIONS, (torch.float32, *HALVES, torch.float64), _FURTHER, "float32, float16, bfloat16 and float64"
    ),
    "triton": Compiled(OPERATIONS, (torch.float32, *HALVES), _FURTHER, _THREE),
    "cuda": Compiled(OPERATIONS, (torch.float32, *HALVES), _FURTHER, _THREE),
}
OLDEST_GPU = (8, 0)
"""Compute capability that the compiled kernels, and Triton, need."""
# Names the file of an extension module with csrc/cuda compiled for the CPU, to run its kernels in tests.
EMULATED = "TSS_KERNELS_EMULATED_CUDA"
RECORD = Path(__file__).parents[1] / "_build.json"


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# Looked up once: finding a package costs more than a small kernel. Nothing is imported here.
INSTALLED = {
    "native": _is_there("tss_kernels._native"),
    "triton": _is_there("triton"),
    "cuda": _is_there("tss_kernels._cuda"),
}


def interpreted() -> bool:
    """Return whether Triton kernels run in Triton's interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def emulated() -> bool:
    """Return whether CUDA kernels, compiled for the CPU, run on CPU tensors."""
    return bool(os.environ.get(EMULATED))


@functools.cache
def build_record() -> dict[str, dict[str, object]]:
    """Return by extension module what the installation built, and why not the rest; empty if it left no record."""
    try:
        return json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}


def _not_built(backend: str) -> Obstacle:
    part = build_record().get(f"_{backend}", {})
    what = "compiled C++ for the CPU" if backend == "native" else "compiled CUDA C++"
    why = f": {part['how']}" if part and not part["built"] else ""
    remedy = str(part.get("remedy") or "") if why else ""
    return Obstacle(f"{backend} ({what}) was not built{why}", f"{remedy or 'install a compiler'}, then install again")


def missing(backend: str) -> Obstacle | None:
    """Return why a backend cannot run anything here, or None; never imports the backend."""
    if backend == "reference" or INSTALLED[backend] or (backend == "cuda" and emulated()):
        return None
    if backend == "triton":
        return Obstacle("the package triton is not installed", "pip install 'tss[triton]' (Linux)")
    return _not_built(backend)


def runs_on(backend: str, device: torch.device) -> bool:
    """Return whether a backend is there and runs on a device."""
    return missing(backend) is None and (backend == "reference" or _wrong_device(backend, device) is None)


def _wrong_device(backend: str, device: torch.device) -> Obstacle | None:
    if backend == "native":
        if device.type == "cpu":
            return None
        return Obstacle(f"native runs on the CPU, not on {device.type}", "move the tensors to the CPU")
    if device.type == "cpu":
        if backend == "triton" and not interpreted():
            return Obstacle(
                "tensors on the CPU need Triton's interpreter, and TRITON_INTERPRET is not set",
                "move the tensors to a CUDA device, or set TRITON_INTERPRET=1 before Python starts (slow, for tests)",
            )
        if backend == "cuda" and not emulated():
            return Obstacle(
                f"tensors on the CPU need kernels compiled for it, and {EMULATED} names none",
                "move the tensors to a CUDA device, or see csrc/README.md (slow, for tests)",
            )
        return None
    if device.type != "cuda":
        return Obstacle(f"{backend} runs on CUDA devices, not on {device.type}", "use the reference backend")
    if backend == "cuda" and not INSTALLED["cuda"]:
        return _not_built("cuda")
    return _wrong_gpu(backend, device.index)


# Number of a GPU of this machine -> why backends cannot run on it, as `_wrong_gpu` found.
_ON_GPU: dict[tuple[str, int], Obstacle | None] = {}


def _wrong_gpu(backend: str, index: int | None) -> Obstacle | None:
    """Return why a backend's code cannot run on a GPU of this machine; nothing is known of GPUs that it lacks.

    A GPU is asked once. Code that is traced by torch.compile only looks at earlier answers: asking cannot be traced.
    """
    if index is None:
        return None
    if torch.compiler.is_compiling():
        return _ON_GPU.get((backend, index))
    if (backend, index) not in _ON_GPU:
        there = torch.cuda.is_available() and index < torch.cuda.device_count()
        _ON_GPU[backend, index] = _ask_gpu(backend, index) if there else None
    return _ON_GPU[backend, index]


def _ask_gpu(backend: str, index: int) -> Obstacle | None:
    capability = torch.cuda.get_device_capability(index)
    least, own = ("{}.{}".format(*pair) for pair in (OLDEST_GPU, capability))
    if capability < OLDEST_GPU:
        return Obstacle(
            f"{backend} needs a GPU of compute capability {least} or newer, and GPU {index} has {own}",
            "use the reference backend",
        )
    if backend != "cuda":
        return None
    module = importlib.import_module("tss_kernels._cuda")
    reason = module.obstacle()
    if reason:
        return Obstacle(
            f"the compiled CUDA kernels cannot run on this machine: {reason}",
            "install a newer driver, or compile with a CUDA toolkit that the driver supports, and install again",
        )
    try:
        module.has_warpgroups(index)  # asks the driver which code of the module it selects
    except RuntimeError as error:
        return Obstacle(
            f"the compiled CUDA kernels have no code for GPU {index} (compute capability {own}): {error}",
            "set TSS_KERNELS_ARCHITECTURES for this GPU, or unset it, and install again",
        )
    return None


def why_not(backend: str, op: str, device: torch.device, dtype: torch.dtype) -> Obstacle | None:
    """Return why a backend cannot run an operation on tensors of this device and dtype, or None."""
    if backend == "reference":
        return None
    obstacle = missing(backend)
    if obstacle is not None:
        return obstacle
    compiled = COMPILED[backend]
    if op not in compiled.operations:
        return Obstacle(
            f"{backend} implements {', '.join(compiled.operations)}, not {op}, in this version",
            "use the reference backend for this operation",
        )
    obstacle = _wrong_device(backend, device)
    if obstacle is None and dtype not in compiled.dtypes and dtype not in compiled.further.get(op, ()):
        return Obstacle(f"{backend} computes in {compiled.computes}, not in {dtype}", "use another dtype")
    return obstacle
