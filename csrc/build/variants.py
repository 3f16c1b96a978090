"""Builds outside an installation: each module by itself, and the variants that only tests use."""

from __future__ import annotations

from pathlib import Path

from csrc.build import ninja_file, plan
from csrc.build.install import Plan
from csrc.build.plan import ROOT
from csrc.build.settings import read
from csrc.build.toolchain import Missing, find_cxx, jobs

__all__ = ["ROOT", "VARIANTS", "built", "read"]

VARIANTS = ("native", "cuda", "emulated", "native-checked", "emulated-checked", "native-counted")


def built(variant: str, out: Path, verbose: bool = False) -> Path:
    """Build one variant in the folder of its name in `out` and return its file. Raises BuildFailed, SettingError."""
    asked = read()
    if variant == "cuda":
        whole = Plan(asked._replace(parts="cuda"))
        module = next(step.module for step in whole.steps if step.name == "_cuda")
        assert module is not None, "a plan with required parts has all their modules"
        return ninja_file.build(module(), whole.compilers, out / variant, jobs(asked, plan.GIB_OF_NVCC), verbose)
    cxx = find_cxx(asked)
    if isinstance(cxx, Missing):
        raise ninja_file.BuildFailed(f"{cxx.reason}. Remedy: {cxx.remedy}.")
    name, _, checked = variant.partition("-")
    if variant == "native-counted":
        module = plan.native_counted()
    else:
        module = {"native": plan.native, "emulated": plan.emulated}[name](bool(checked))
    return ninja_file.build(module, {"cxx": cxx.path}, out / variant, jobs(asked, module.gib_each), verbose)
