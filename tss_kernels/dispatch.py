"""Which backend runs an operation: the choice by device and dtype, what each backend lacks, and how to force one."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import threading
from types import ModuleType, TracebackType
from typing import NamedTuple

import torch

# The folder of each operation, whose files are its backends.
FOLDERS = {
    "gated_linear": "gated_linear",
    "gated_adapter": "gated_adapter",
    "pack_gates": "gates",
    "unpack_gates": "gates",
    "packed_linear": "gates",
    "normalize_importance": "importance",
    "accumulate_importance_": "importance",
    "update_importance_": "importance",
    "soft_masked_adamw_": "adamw",
}
OPERATIONS = tuple(FOLDERS)
BACKENDS = ("reference", "native", "triton", "cuda")
VARIABLE = "TSS_KERNELS_BACKEND"
TRITON_OPERATIONS = (
    "gated_linear",
    "gated_adapter",
    "pack_gates",
    "unpack_gates",
    "packed_linear",
    "normalize_importance",
    "accumulate_importance_",
    "update_importance_",
    "soft_masked_adamw_",
)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What an operation takes beside those: packed gates are bytes, and importance is computed in float64.
TRITON_FURTHER_DTYPES = {
    "unpack_gates": torch.uint8,
    "normalize_importance": torch.float64,
    "accumulate_importance_": torch.float64,
    "update_importance_": torch.float64,
}
# Looked up once: finding a package costs more than a small kernel. It is not imported here.
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
PLANNED = {"native": "compiled C++ for CPU", "cuda": "compiled CUDA C++"}


class BackendUnavailable(RuntimeError):
    """A backend was forced that cannot run this operation on this input; the message says why and what to do."""


class Obstacle(NamedTuple):
    """Why a backend cannot run something, and what would change that."""

    reason: str
    remedy: str


class Choice(NamedTuple):
    """The backend that runs an operation, its launch configuration and why it was taken."""

    backend: str
    configuration: str
    reason: str


class _Forced(threading.local):
    # One value per thread, each starting from the environment. Not a ContextVar: torch.compile cannot trace those,
    # while it guards on this attribute, so a compiled function follows `use_backend`.
    def __init__(self) -> None:
        self.backend: str | None = os.environ.get(VARIABLE) or None


_forced = _Forced()


class use_backend:
    """Forces one backend inside a `with` block, in this thread; None goes back to the automatic choice.

    The backward pass of what ran inside uses the same backend, wherever and in whichever thread it runs. An operation
    that the backend cannot run raises BackendUnavailable when it is called. Raises ValueError for an unknown name.
    """

    def __init__(self, backend: str | None) -> None:
        if backend is not None:
            _check_name(backend)
        self.backend = backend
        self.outer: list[str | None] = []

    def __enter__(self) -> None:
        self.outer.append(_forced.backend)
        _forced.backend = self.backend

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _forced.backend = self.outer.pop()


def forced_backend() -> str | None:
    """The backend that `use_backend` or the environment forces in this thread, or None."""
    return _forced.backend


def _check_name(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}: use_backend and {VARIABLE} take one of {', '.join(BACKENDS)}")


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def missing(backend: str) -> Obstacle | None:
    """What keeps a backend from running anything here, or None; never imports the backend."""
    if backend in PLANNED:
        return Obstacle(
            f"{backend} ({PLANNED[backend]}) is not part of this version", "use another backend or leave it unforced"
        )
    if backend == "triton" and not TRITON_INSTALLED:
        return Obstacle("the package triton is not installed", "pip install 'tss[triton]' (Linux)")
    return None


def why_not(backend: str, op: str, device: torch.device, dtype: torch.dtype) -> Obstacle | None:
    """What keeps a backend from running an operation on tensors of this device and dtype, or None."""
    if backend == "reference":
        return None
    obstacle = missing(backend)
    if obstacle is not None:
        return obstacle
    if op not in TRITON_OPERATIONS:
        return Obstacle(
            f"triton implements {', '.join(TRITON_OPERATIONS)}, not {op}, in this version",
            "use the reference backend for this operation",
        )
    if device.type == "cpu" and not interpreted():
        return Obstacle(
            "tensors on the CPU need Triton's interpreter, and TRITON_INTERPRET is not set",
            "move the tensors to a CUDA device, or set TRITON_INTERPRET=1 before Python starts (slow, for tests)",
        )
    if device.type not in ("cpu", "cuda"):
        return Obstacle(f"triton runs on CUDA devices, not on {device.type}", "use the reference backend")
    if dtype not in TRITON_DTYPES and dtype != TRITON_FURTHER_DTYPES.get(op):
        return Obstacle(f"triton computes in float32, float16 and bfloat16, not in {dtype}", "use another dtype")
    return None


def default_backend(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs an operation when none is forced; depends on nothing that is measured at run time."""
    if device.type == "cuda" and not interpreted() and why_not("triton", op, device, dtype) is None:
        return "triton"
    return "reference"


def select(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """The forced backend if there is one, else the default. Raises BackendUnavailable if the forced one cannot run."""
    forced = _forced.backend
    if forced is None:
        return default_backend(op, device, dtype)
    _check_name(forced)
    obstacle = why_not(forced, op, device, dtype)
    if obstacle is not None:
        raise BackendUnavailable(
            f"backend {forced!r} was forced for {op} on {device.type} in {dtype} but cannot run: "
            f"{obstacle.reason}. Remedy: {obstacle.remedy}."
        )
    return forced


def choose(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> Choice:
    """The unforced choice for an operation: a pure function of device, dtype and shape.

    op: a name in OPERATIONS; shape: (rows, in, out) for the linear operations, else any. Raises ValueError.
    """
    if op not in OPERATIONS:
        raise ValueError(f"no operation {op!r}: choose one of {', '.join(OPERATIONS)}")
    backend = default_backend(op, device, dtype)
    if backend == "triton":
        reason = "fused kernel for CUDA tensors"
    elif device.type == "cpu":
        reason = "the only backend of this version for CPU tensors that is not an interpreter"
    else:
        obstacle = why_not("triton", op, device, dtype)
        reason = obstacle.reason if obstacle is not None else "Triton's interpreter is on, which is for tests"
    return Choice(backend, configuration(op, backend, device, dtype, shape), reason)


def configuration(op: str, backend: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """The launch configuration in words; of products, for operands whose rows start on 16-byte boundaries if sizes do.

    A backend's file that has launches to choose says it in a function of this name: (op, device, dtype, shape) -> str.
    """
    if backend == "reference":
        return "plain PyTorch"
    return implementation(FOLDERS[op], backend).configuration(op, device, dtype, shape)


@functools.cache
def implementation(folder: str, backend: str) -> ModuleType:
    """The module of a backend in an operation's folder, imported at its first use."""
    return importlib.import_module(f"tss_kernels.{folder}.{backend}")
