"""Which backend runs an operation: peers behind one pure choice, and one way to force another.

Nothing here imports a backend or queries a device until an operation needs one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch

BACKENDS = ("reference", "native", "triton", "cuda")
VARIABLE = "TSS_KERNELS_BACKEND"

# operation -> the folder that holds it; every operation has a reference.
ROOMS = {
    "gated_linear": "gated_linear",
    "gated_adapter": "gated_adapter",
    "pack_gates": "gates",
    "unpack_gates": "gates",
    "packed_linear": "gates",
    "normalize_importance": "importance",
    "accumulate_importance_": "importance",
    "soft_masked_adamw_": "adamw",
}
# The operations that each backend implements, besides `reference`, which implements all.
IMPLEMENTED = {"triton": ("gated_linear", "soft_masked_adamw_")}
ALWAYS_FLOAT = (torch.float32, torch.float16, torch.bfloat16)

_forced: ContextVar[str | None] = ContextVar("tss_kernels_backend", default=None)


class BackendUnavailable(RuntimeError):
    """A backend was asked for that cannot run this; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class Choice:
    """The backend that runs an operation, its configuration where it has one, and why it was chosen."""

    backend: str
    reason: str
    configuration: str = ""


def _is_interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def why_not(backend: str, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot run `op` on tensors of this device and dtype, with the remedy; None if it can."""
    if backend not in BACKENDS:
        return f"there is no backend {backend!r}; the backends are {', '.join(BACKENDS)}"
    if backend == "reference":
        return None
    if backend not in IMPLEMENTED:
        return f"this version of tss_kernels has no {backend} backend; use reference or triton"
    if op not in IMPLEMENTED[backend]:
        return f"{op} has no {backend} kernel in this version; use reference"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; pip install triton"
    if dtype not in ALWAYS_FLOAT:
        return f"the triton kernels compute float32, float16 and bfloat16, not {dtype}; use reference"
    if device.type == "cuda" or (device.type == "cpu" and _is_interpreting()):
        return None
    if device.type == "cpu":
        return "triton runs CPU tensors only in its interpreter; set TRITON_INTERPRET=1 before starting Python"
    return f"triton kernels run on cuda tensors, not on {device.type}; use reference"


def forced_backend() -> str | None:
    """The backend that `use_backend` or else TSS_KERNELS_BACKEND forces; None if the choice is free."""
    return _forced.get() or os.environ.get(VARIABLE) or None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for the operations called inside; a backward pass uses the backend of its forward pass.

    A compiled function keeps the backend it was compiled with.

    Raises:
        BackendUnavailable: if there is no such backend; an operation that it cannot run raises when called.
    """
    if name not in BACKENDS:
        raise BackendUnavailable(f"there is no backend {name!r}; the backends are {', '.join(BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(op: str, device: torch.device, dtype: torch.dtype, forced: str | None = None) -> Choice:
    """The backend for an operation: a pure function of operation, device, dtype and the forced name.

    Raises:
        BackendUnavailable: if the forced backend cannot run it.
    """
    if forced is not None:
        reason = why_not(forced, op, device, dtype)
        if reason is not None:
            raise BackendUnavailable(f"{op}: backend {forced} was forced and cannot run: {reason}")
        return Choice(forced, f"forced by use_backend or {VARIABLE}")
    if device.type == "cuda" and why_not("triton", op, device, dtype) is None:
        return Choice("triton", f"the default on cuda for {dtype}")
    return Choice("reference", "plain PyTorch: the default where no other backend is both available and preferred")


@torch.compiler.assume_constant_result
def backend_for(op: str, device_type: str, dtype: torch.dtype) -> str:
    """The name of the backend that runs `op` now; constant inside a compiled graph."""
    return choose(op, torch.device(device_type), dtype, forced_backend()).backend


@lru_cache
def load(op: str, backend: str) -> ModuleType:
    """The module that implements `op` for `backend`."""
    return importlib.import_module(f"tss_kernels.{ROOMS[op]}.{backend}")
