"""The backends and devices that the kernels' tests run on; CUDA kernels are compiled for the CPU where no GPU is."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator

import numpy
import pytest
import torch

from csrc.build.toolchain import Missing, find_cxx
from csrc.build.variants import ROOT, built, read
from tss_kernels.backends.registry import BACKENDS, EMULATED, why_not

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _use_checked_kernels() -> None:
    """Takes native kernels that were compiled with sanitizers in place of the installed ones (`make sanitize`)."""
    file = os.environ.get("TSS_CHECKED_NATIVE")
    if file is None:
        return
    spec = importlib.util.spec_from_file_location("tss_kernels._native", file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])


_use_checked_kernels()  # before any test module imports them


@pytest.fixture(scope="session", autouse=True)
def _kernels_for_the_cpu() -> None:
    """Has the CUDA kernels compiled for the CPU, once; without a compiler their tests skip and say so."""
    if not torch.cuda.is_available() and EMULATED not in os.environ and not isinstance(find_cxx(read()), Missing):
        os.environ[EMULATED] = str(built("emulated", ROOT / "build"))


@pytest.fixture(scope="session", autouse=True)
def _interpreted_dot_of_any_place() -> Iterator[None]:
    """Has the interpreter's `tl.dot` add in one order everywhere in a tile, as tensor cores do.

    It multiplies by NumPy's BLAS, which on some processors adds the last columns of a tile in another order: the bits
    of a row would depend on its place among others, which they do not on a GPU.
    """
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        del self, input_precision, max_num_imprecise_acc
        rows, columns = (numpy.ascontiguousarray(x, dtype=d.data.dtype) for x in (a.data, b.data.T))
        return interpreter.TensorHandle(numpy.einsum("mk,nk->mn", rows, columns) + d.data, d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
        yield


@pytest.fixture
def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return DEVICE


def _runs(backend: str, op: str, dtype: torch.dtype) -> None:
    obstacle = why_not(backend, op, DEVICE, dtype)
    if obstacle is not None:
        pytest.skip(obstacle.reason)


@pytest.fixture
def cuda_kernels() -> None:
    """Skips, with the reason, where kernels of csrc/cuda run neither on a GPU nor compiled for the CPU."""
    _runs("cuda", "gated_linear", torch.float32)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every backend of this version by turns; its `runs(op, dtype)` skips, with the reason, what cannot run here."""

    class Backend(str):
        def runs(self, op: str, dtype: torch.dtype) -> None:
            _runs(self, op, dtype)

    return Backend(request.param)
