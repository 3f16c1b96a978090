"""What a program pays before its first result: imports and first calls, each in a separate process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.cases.sizes import Sizes
from bench.core.case import Case, Inputs, Outputs, Variant
from bench.core.machine import ROOT

FIRST_LAYER = """
import torch, tss_kernels
x = torch.randn(512, 1024, device="{device}")
layer = tss_kernels.GatedAdapterLinear(1024, 64).to("{device}")
layer(x).sum().item()
"""
FIRST_LINEAR = """
import torch
x = torch.randn(512, 1024, device="{device}")
torch.nn.functional.linear(x, torch.randn(64, 1024, device="{device}")).sum().item()
"""
# What is started -> code with this package, and the part of it without this package.
STARTS = {
    "import of tss_kernels": ("import tss_kernels", "import torch"),
    "import of tss": ("import tss", "pass"),
    "first gated layer": (FIRST_LAYER, FIRST_LINEAR),
    "tss --help": ("import sys; from tss.cli.main import main; sys.exit(main(['--help']))", "pass"),
}


def _run(code: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)


def _bind(code: str, t: Inputs) -> Callable[[], Outputs]:
    def call() -> Outputs:
        _run(code)
        return {}

    return call


def _check(code: str, variant: Variant) -> str | None:
    done = _run(code)
    return None if done.returncode == 0 else f"ended with {done.returncode}: {done.stderr.decode().strip()[-500:]}"


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield the cases; each times a whole process, from its start to its end."""
    for name, (ours, theirs) in list(STARTS.items())[-1:] if sizes.tiny else STARTS.items():
        code, floor = (one.format(device=sizes.device.type) for one in (ours, theirs))
        yield Case(
            name, {}, torch.float32, lambda seed: {}, None,
            (
                Variant("tss", "ours", partial(_bind, code)),
                Variant("without tss", "floor", partial(_bind, floor), differs="only what is not of this package"),
            ),
            check=partial(_check, code), sets=1, cold=False, checked="the process ends with 0",
        )  # fmt: skip
