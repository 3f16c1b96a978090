"""Compile csrc only for the GPUs of this machine, into the package, and check that the result runs.

`python -m bench.gpu.build`: the last line is JSON, with the outcome of each module and the reason. Needs no network;
pybind11 and ninja may come from a folder on PYTHONPATH. TSS_KERNELS_BUILD=off keeps the existing modules.
`python -m bench.gpu.build --check _native _cuda`: runs these modules, and prints a line after each one that is right.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from csrc.build import plan
from csrc.build.ninja_file import BuildFailed, suffix
from csrc.build.plan import ROOT
from csrc.build.settings import Settings, read
from csrc.build.toolchain import Missing, Tool, find_cxx, find_nvcc
from csrc.build.variants import built

PACKAGE = ROOT / "tss_kernels"
VARIABLE = "TSS_KERNELS_ARCHITECTURES"
MODULES = {"native": "_native", "cuda": "_cuda"}  # csrc.build's variants, and their files in the package
ASIDE = "failed-"  # before the name of a file that must not be used: Python does not find a module of that name
PASSED = "checked {}"  # printed after a module


class Built(NamedTuple):
    """Outcome of a module: compiled, ready (it existed already), missing or failed; and how or why."""

    status: str
    reason: str


def architectures(capabilities: Iterable[str]) -> str:
    """Return TSS_KERNELS_ARCHITECTURES for only these GPUs, from capabilities such as "9.0"."""
    numbers = sorted({capability.replace(".", "") for capability in capabilities}, key=int)
    return " ".join("90a" if number == "90" else number for number in numbers)


def _nvcc_obstacle(settings: Settings) -> str | None:
    """Return why nvcc cannot compile for these architectures and link the runtime, or None."""
    nvcc = find_nvcc(settings)
    if isinstance(nvcc, Missing):
        return nvcc.reason
    listed = subprocess.run([nvcc.path, "--list-gpu-code"], capture_output=True, text=True, timeout=60, check=False)
    known = {name.removeprefix("sm_").rstrip("af") for name in listed.stdout.split()}
    for name in settings.architectures:
        if known and name.removesuffix("+PTX").rstrip("af") not in known:
            return f"{nvcc.version} at {nvcc.path} does not know sm_{name}"
    module = plan.cuda(settings, nvcc)
    return module.reason if isinstance(module, Missing) else None


def obstacle(variant: str, settings: Settings) -> str | None:
    """Return why a module cannot be compiled here at all, or None."""
    if settings.parts == "off":
        return "TSS_KERNELS_BUILD is off"
    if importlib.util.find_spec("pybind11") is None:
        return "the package pybind11 is not installed; copy its wheel here and name its folder: --wheels"
    if importlib.util.find_spec("ninja") is None and shutil.which("ninja") is None:
        return "ninja is not installed; copy its wheel here and name its folder: --wheels"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "this Python has no headers (Python.h): copy a module built elsewhere, see scripts/gpu.sh --help"
    compiler: Tool | Missing = find_cxx(settings)
    if isinstance(compiler, Missing):
        return compiler.reason
    return _nvcc_obstacle(settings) if variant == "cuda" else None


def _lying(name: str) -> tuple[Path | None, str]:
    """Return the module's existing file for this Python, and a note about files that cannot be used."""
    exact = PACKAGE / f"{name}{suffix()}"
    if exact.exists():
        return exact, ""
    others = ", ".join(sorted(path.name for path in PACKAGE.glob(f"{name}.*.so")))
    aside = exact.with_name(f"{ASIDE}{exact.name}")
    notes = [
        f"; {others} is not for this Python, whose modules end with {suffix()}" if others else "",
        f"; {aside.name} failed earlier" if aside.exists() else "",
    ]
    return None, "".join(notes)


def set_aside(name: str) -> str:
    """Take the package's file of a module out of use, if there is one: rename it. Return a sentence about it."""
    file, _ = _lying(name)
    if file is None:
        return "the package has no such module"
    file.replace(aside := file.with_name(f"{ASIDE}{file.name}"))
    return f"it is out of use, as {PACKAGE.name}/{aside.name}: rename it to {file.name} to try it again"


def _compile(variant: str, name: str) -> Built:
    target = PACKAGE / f"{name}{suffix()}"
    try:
        file = built(variant, ROOT / "build")
    except BuildFailed as error:
        set_aside(name)  # it was built from other sources: no number may come from it
        return Built("failed", str(error)[-6000:])
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(file, beside)
    beside.replace(target)
    return Built("compiled", f"for {os.environ.get(VARIABLE) or 'every GPU'}" if variant == "cuda" else "for this CPU")


def build() -> dict[str, Built]:
    """Update every module that can be compiled here; the others stay as they are in the package, or are missing."""
    settings, found = read(), {}
    for variant, name in MODULES.items():
        why = obstacle(variant, settings)
        if why is None:
            found[name] = _compile(variant, name)
            continue
        lying, others = _lying(name)
        found[name] = Built("missing" if lying is None else "ready", why + others)
    return found


def check(names: Sequence[str] = tuple(MODULES.values())) -> None:
    """Check that these modules, if the package has them, run and compute correctly here; raise what is wrong."""
    import torch

    from tss_kernels.backends.registry import INSTALLED
    from tss_kernels.gates import reference

    scores = torch.randn(70, 136, generator=torch.Generator().manual_seed(0))
    expected = reference.pack(reference.gates(scores, 0.0))
    for name in (name for name in names if INSTALLED[name.removeprefix("_")]):
        if name == "_native":
            from tss_kernels.gates import native

            assert torch.equal(native.pack_gates(scores, 0.0), expected), "the native gates are wrong"
        else:
            for index in range(torch.cuda.device_count()):
                _check_device(torch.device("cuda", index), scores, expected)
        print(PASSED.format(name), flush=True)


def _check_device(device: Any, scores: Any, expected: Any) -> None:
    """Check that the module has code for this GPU, including its warpgroup instructions if it is Hopper."""
    import torch

    from tss_kernels.backends.tables.cuda import NARROW, NARROW_GROUPS, has_warpgroups
    from tss_kernels.gated_linear import cuda as products
    from tss_kernels.gates import cuda as gates

    packed = gates.pack_gates(scores.to(device), 0.0)
    assert torch.equal(packed.cpu(), expected), f"the gates are wrong on {device}"
    # Sums of small integers are exact in any order, so that this tests the code and not rounding.
    x = (torch.arange(130 * 136, device=device).view(130, 136) % 3 - 1).to(torch.bfloat16)
    weight = (torch.arange(70 * 136, device=device).view(70, 136) % 5 - 2).to(torch.bfloat16)
    exact = x.double() @ torch.where(scores.to(device) >= 0, weight.double(), 0).T
    groups, hopper = has_warpgroups(device), torch.cuda.get_device_capability(device) == (9, 0)
    assert groups == hopper, f"code for warpgroups is {'' if groups else 'not '}used on {device}, which is {hopper=}"
    for tiling in (NARROW, *((NARROW_GROUPS,) if groups else ())):
        found = products.packed_linear(x, weight, packed, None, tiling, False)
        assert torch.equal(found, exact.to(torch.bfloat16)), f"the product {tiling.name} is wrong on {device}"


def main() -> None:
    """Build, or with --check run what was built."""
    if sys.argv[1:2] == ["--check"]:
        check(sys.argv[2:])
    else:
        print(json.dumps({name: built._asdict() for name, built in build().items()}))


if __name__ == "__main__":
    main()
