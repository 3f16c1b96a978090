"""Choice of the backend of an operation: by device, dtype and shape, or forced."""

from __future__ import annotations

import functools
import importlib
import os
import threading
from types import ModuleType, TracebackType
from typing import NamedTuple

import torch

from tss_kernels.backends.preferences import MANY, Preference, preferences
from tss_kernels.backends.registry import BACKENDS, FOLDERS, OPERATIONS, interpreted, why_not

VARIABLE = "TSS_KERNELS_BACKEND"


class BackendUnavailable(RuntimeError):
    """The forced backend cannot run this operation on this input; the message says why and what to do."""


class Choice(NamedTuple):
    """The backend that runs an operation, its launch configuration and the reason for the choice."""

    backend: str
    configuration: str
    reason: str


class _Forced(threading.local):
    # One value per thread, initialized from the environment. Not a ContextVar, which torch.compile cannot trace: it
    # guards on this attribute, so a compiled function follows `use_backend`.
    def __init__(self) -> None:
        self.backend: str | None = os.environ.get(VARIABLE) or None
        self.outer: list[str | None] = []  # what is restored at the end of each `with` block, innermost last


forced = _Forced()


class use_backend:
    """Force one backend inside a `with` block, in this thread; None restores the automatic choice.

    The backward pass of what ran inside uses the same backend, wherever and in whichever thread it runs. Activation
    checkpointing runs the forward pass again, by the choice in the thread of the backward pass: set the environment
    variable TSS_KERNELS_BACKEND then. Calling an operation that the backend cannot run raises `BackendUnavailable`.

    Raises:
        ValueError: the name is unknown.
    """

    def __init__(self, backend: str | None) -> None:
        if backend is not None:
            _check_name(backend)
        self.backend = backend

    def __enter__(self) -> None:
        forced.outer.append(forced.backend)
        forced.backend = self.backend

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        forced.backend = forced.outer.pop()


def forced_backend() -> str | None:
    """Return the backend that `use_backend` or the environment forces in this thread, or None."""
    return forced.backend


def _check_name(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}: use_backend and {VARIABLE} accept one of {', '.join(BACKENDS)}")


def _preferred(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Preference | None:
    for preference in preferences(op, device, dtype, shape):
        # Triton's interpreter is for tests, which force the backend.
        if preference.backend == "triton" and interpreted():
            continue
        if why_not(preference.backend, op, device, dtype) is None:
            return preference
    return None


def default_backend(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> str:
    """Return the backend that runs an operation if none is forced; depends on nothing measured at run time."""
    preference = _preferred(op, device, dtype, shape)
    return "reference" if preference is None else preference.backend


def shape_of(x: torch.Tensor, in_features: int, out_features: int) -> tuple[int, ...]:
    """Return the shape by which a backend is chosen, (rows, in, out); empty on the CPU, where shape does not matter.

    Compiled code gets MANY rows: a choice by their number would recompile a function for other numbers.
    """
    if not x.is_cuda:
        return ()
    rows = MANY if torch.compiler.is_compiling() else x.numel() // max(in_features, 1)
    return rows, in_features, out_features


def select(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> str:
    """Return the forced backend, else the default. Raises BackendUnavailable if the forced one cannot run.

    shape: as returned by `shape_of`, for operations that have one.
    """
    name = forced.backend
    if name is None:
        return default_backend(op, device, dtype, shape)
    _check_name(name)
    obstacle = why_not(name, op, device, dtype)
    if obstacle is not None:
        raise BackendUnavailable(
            f"backend {name!r} was forced for {op} on {device.type} in {dtype} but cannot run: "
            f"{obstacle.reason}. Remedy: {obstacle.remedy}."
        )
    return name


def choose(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> Choice:
    """Return the choice for an operation if no backend is forced: a pure function of device, dtype and shape.

    op: a name in OPERATIONS; shape: (rows, in, out), or (rows, d, bottleneck) for the adapter, or any for others.
    Raises ValueError.
    """
    if op not in OPERATIONS:
        raise ValueError(f"no operation {op!r}: choose one of {', '.join(OPERATIONS)}")
    preference = _preferred(op, device, dtype, shape)
    if preference is not None:
        backend, reason = preference
    else:
        backend, reason = "reference", _why_reference(op, device, dtype, shape)
    return Choice(backend, configuration(op, backend, device, dtype, shape), reason)


def _why_reference(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    wanted = preferences(op, device, dtype, shape)
    if not wanted:
        return f"no measured backend is faster on {device.type}"
    obstacle = why_not(wanted[0].backend, op, device, dtype)
    return obstacle.reason if obstacle is not None else "Triton's interpreter is on, which is for tests"


def configuration(op: str, backend: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe the launch configuration; for products, assumes rows that start on 16-byte boundaries if sizes allow it.

    The file of every backend but the reference has a function of this name: (op, device, dtype, shape) -> str.
    """
    if backend == "reference":
        return "plain PyTorch"
    return implementation(op, backend).configuration(op, device, dtype, shape)


@functools.cache
def implementation(op: str, backend: str) -> ModuleType:
    """Import, at first use, a backend's file in an operation's folder: `tss_kernels/<folder>/<backend>.py`.

    These are not kernels of PyTorch's dispatcher, which has one per device: here one device has several backends, each
    thread chooses among them, and what is not installed must not be imported.
    """
    return importlib.import_module(f"tss_kernels.{FOLDERS[op]}.{backend}")
