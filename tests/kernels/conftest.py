"""The backends and devices that the kernels' tests run on."""

from __future__ import annotations

import pytest
import torch

from tss_kernels.backends import BACKENDS, why_not

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
