"""Environment variables that a build reads, in one table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

PARTS = ("auto", "off", "cpu", "cuda")
# Machine code for data-centre Ampere (which smaller Ampere GPUs can run too) and Hopper, and PTX of plain compute_90,
# which the driver can compile for every later architecture; code for 90a runs on 90 alone.
ARCHITECTURES = "80 90a 90+PTX"

VARIABLES = {
    "TSS_KERNELS_BUILD": f"what to build: {', '.join(PARTS)}; auto (the default) builds what the available compilers "
    "support; cpu and cuda fail if they cannot be built",
    "TSS_KERNELS_ARCHITECTURES": f"GPU architectures, default {ARCHITECTURES!r}; +PTX adds code for later ones",
    "TSS_KERNELS_NVCC": "path of nvcc; else the first that is new enough of CUDA_HOME/bin/nvcc, CUDA_PATH/bin/nvcc, "
    "nvcc on the PATH, /usr/local/cuda, /usr/local/cuda-* and /opt/cuda* (the newest first)",
    "CXX": "C++ compiler; else c++, g++, clang++ on the PATH",
    "MAX_JOBS": "number of compilers that run at once; else one per core, and one per 2 GiB of free memory",
}


class SettingError(ValueError):
    """A variable has an invalid value."""


class Settings(NamedTuple):
    """Settings of a build from environment variables."""

    parts: str
    architectures: tuple[str, ...]
    nvcc: str | None
    cxx: str | None
    jobs: int | None


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of this environment. Raises SettingError with the variable, its value and what is allowed."""
    variables = os.environ if environment is None else environment
    parts = variables.get("TSS_KERNELS_BUILD") or "auto"
    if parts not in PARTS:
        raise SettingError(f"TSS_KERNELS_BUILD must be one of {', '.join(PARTS)} but is {parts!r}")
    architectures = (variables.get("TSS_KERNELS_ARCHITECTURES") or ARCHITECTURES).replace(";", " ").split()
    for name in architectures:
        number = name.removesuffix("+PTX").rstrip("af")
        if not number.isdigit() or int(number) < 80:
            raise SettingError(
                f"TSS_KERNELS_ARCHITECTURES must list architectures from 80 on, such as {ARCHITECTURES!r}, but has "
                f"{name!r}"
            )
    jobs = variables.get("MAX_JOBS") or None
    if jobs is not None and (not jobs.isdigit() or int(jobs) < 1):
        raise SettingError(f"MAX_JOBS must be a number from 1 on but is {jobs!r}")
    return Settings(
        parts,
        tuple(architectures),
        variables.get("TSS_KERNELS_NVCC") or None,
        variables.get("CXX") or None,
        None if jobs is None else int(jobs),
    )


def table() -> str:
    """Return a Markdown table of the variables and their meanings, one line each."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in VARIABLES.items()]
    return "\n".join(["| variable | meaning |", "|---|---|", *rows])
