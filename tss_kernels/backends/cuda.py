"""Shared by the files of the CUDA C++ backend: the extension module, and the target of a launch."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import torch

from tss_kernels.backends.registry import EMULATED


@functools.cache
def _compiled() -> Any:
    module = importlib.import_module("tss_kernels._cuda")
    obstacle = module.obstacle()
    if obstacle:
        raise RuntimeError(
            f"the compiled CUDA kernels cannot run on this machine: {obstacle}. Remedy: install a driver that supports "
            "the CUDA toolkit with which they were compiled"
        )
    return module


@functools.cache
def _emulated(file: str) -> ModuleType:
    """Load the kernels compiled for the CPU from the file that the environment variable names."""
    spec = importlib.util.spec_from_file_location("_cuda_emulated", file)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{EMULATED} names {file!r}, which is not an extension module: see csrc/README.md")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module
    return module


def kernels(device: torch.device) -> Any:
    """Return the module whose kernels run on tensors of this device."""
    return _compiled() if device.type == "cuda" else _emulated(os.environ[EMULATED])


def target(device: torch.device) -> tuple[int, int]:
    """Return the device index and the address of its current stream; zeros if kernels are emulated."""
    if device.type != "cuda":
        return 0, 0
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(index).cuda_stream
