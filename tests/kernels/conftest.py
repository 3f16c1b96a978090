"""The backends and devices that the kernels' tests run on; CUDA kernels are compiled for the CPU where no GPU is."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

from csrc.build.toolchain import Missing, find_cxx
from csrc.build.variants import ROOT, built, read
from tss_kernels.backends import BACKENDS, EMULATED, why_not

# A file with the native kernels compiled with sanitizers, in place of those that are installed (`make sanitize`).
CHECKED = "TSS_CHECKED_NATIVE"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_sessionstart() -> None:
    """Has the CUDA kernels compiled for the CPU, once; without a compiler their tests skip and say so."""
    if CHECKED in os.environ:
        spec = importlib.util.spec_from_file_location("tss_kernels._native", os.environ[CHECKED])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    if not torch.cuda.is_available() and EMULATED not in os.environ and not isinstance(find_cxx(read()), Missing):
        os.environ[EMULATED] = str(built("emulated", ROOT / "build"))


@pytest.fixture
def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return DEVICE


def _runs(backend: str, op: str, dtype: torch.dtype) -> None:
    obstacle = why_not(backend, op, DEVICE, dtype)
    if obstacle is not None:
        pytest.skip(obstacle.reason)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every backend of this version by turns; its `runs(op, dtype)` skips, with the reason, what cannot run here."""

    class Backend(str):
        def runs(self, op: str, dtype: torch.dtype) -> None:
            _runs(self, op, dtype)

    return Backend(request.param)
