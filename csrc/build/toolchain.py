"""Find the compilers of this machine, and say why one cannot be used."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from csrc.build.settings import Settings

# The first release with kernel arguments of more than 4 KB, which describe all tensors of an optimizer step.
OLDEST_NVCC = (12, 1)
CXX_NAMES = ("c++", "g++", "clang++")
NVCC_HOMES = ("CUDA_HOME", "CUDA_PATH")
USUAL_HOMES = ("/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda*")
"""Where toolkits usually are, the first choice first; of several that match a pattern, the newest comes first."""


class Tool(NamedTuple):
    """A compiler and its version, for the record."""

    path: str
    version: str


class Missing(NamedTuple):
    """Why a compiler cannot be used, and what would change that."""

    reason: str
    remedy: str


def usual_homes() -> list[Path]:
    """Return the folders of this machine's toolkits in the usual places, in the order in which to try them."""

    def version(home: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", home)]

    return [Path(home) for pattern in USUAL_HOMES for home in sorted(glob.glob(pattern), key=version, reverse=True)]


def _output(command: list[str]) -> str | None:
    """Return the standard output of a command, or None if it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def find_cxx(settings: Settings) -> Tool | Missing:
    """Return the C++ compiler that the settings name, else the first of the usual ones that runs."""
    names = [settings.cxx] if settings.cxx else list(CXX_NAMES)
    for name in names:
        path = shutil.which(name)
        text = None if path is None else _output([path, "--version"])
        if path is not None and text:
            return Tool(path, text.splitlines()[0])
    if settings.cxx:
        return Missing(f"CXX names {settings.cxx!r}, which does not run", "set CXX to a C++17 compiler or unset it")
    return Missing("no C++ compiler was found", "install g++ or clang++ (C++17), or set CXX")


def _nvcc_candidates(settings: Settings, variables: Mapping[str, str]) -> list[str]:
    if settings.nvcc:
        return [settings.nvcc]
    homes = [variables[name] for name in NVCC_HOMES if variables.get(name)]
    named, usual = ([str(Path(home) / "bin" / "nvcc") for home in some] for some in (homes, usual_homes()))
    return [*named, *filter(None, [shutil.which("nvcc")]), *usual]


def find_nvcc(settings: Settings, variables: Mapping[str, str] | None = None) -> Tool | Missing:
    """Return the first nvcc that is new enough, or why there is none."""
    old: Missing | None = None
    for path in _nvcc_candidates(settings, os.environ if variables is None else variables):
        text = _output([path, "--version"])
        version = re.search(r"release (\d+)\.(\d+)", text or "")
        if version is None:
            continue
        if (int(version[1]), int(version[2])) < OLDEST_NVCC:
            oldest = ".".join(map(str, OLDEST_NVCC))
            old = old or Missing(
                f"nvcc at {path} is release {version[1]}.{version[2]}, older than {oldest}",
                f"install a CUDA toolkit of {oldest} or newer, or name one with TSS_KERNELS_NVCC",
            )
            continue
        return Tool(path, f"nvcc {version[1]}.{version[2]}")
    if old is not None:
        return old
    if settings.nvcc:
        return Missing(f"TSS_KERNELS_NVCC names {settings.nvcc!r}, which does not run", "correct or unset it")
    return Missing("no nvcc was found", "install the CUDA toolkit (12.1 or newer), or set TSS_KERNELS_NVCC")


def cuda_home(nvcc: Tool) -> Path | None:
    """Return the folder with the toolkit's `include` and `lib64`; the one that nvcc itself reports comes first."""
    text = subprocess.run(
        [nvcc.path, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
        capture_output=True, text=True, timeout=60, check=False,
    ).stderr  # fmt: skip
    top = re.search(r"^#\$ TOP=(.*)$", text, re.MULTILINE)
    places = [Path(top[1])] if top else []
    places += [Path(nvcc.path).resolve().parent.parent, *usual_homes()]
    return next((place for place in places if (place / "include" / "cuda_runtime.h").exists()), None)


def jobs(settings: Settings, gib_each: float) -> int:
    """Return how many compilers to run at once, if each may need `gib_each` GiB of memory."""
    if settings.jobs is not None:
        return settings.jobs
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_free_gib() / gib_each)))


def _free_gib() -> float:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 8.0
    free = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(free[1]) / 2**20 if free else 8.0
