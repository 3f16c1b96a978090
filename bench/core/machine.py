"""The machine and code behind the numbers, and whether anything else was running; all of it is optional.

`python -m bench.core.machine` prints it as JSON.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from csrc.build.toolchain import usual_homes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tss_kernels", "tss", "bench", "csrc")  # what numbers depend on
PACKAGES = ("torch", "triton", "numpy", "transformers", "peft", "pytest", "pytest-benchmark", "pytest-xdist",
            "hypothesis", "pybind11", "ninja")  # fmt: skip
SMI_FIELDS = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"
TOOL_FOLDERS = ("bin", "compute-sanitizer")  # of a CUDA toolkit
OTHER_TOOLS = "/opt/nvidia/*/bin"


def version(package: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_tool(name: str) -> str | None:
    """Find a CUDA tool on the PATH or in one of CUDA's usual folders."""
    folders = [str(home / folder) for home in usual_homes() for folder in TOOL_FOLDERS]
    folders += sorted(glob.glob(OTHER_TOOLS), reverse=True)
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def processor() -> str:
    """Return the CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if not hasattr(os, "sched_getaffinity"):  # not on macOS
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0))


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _why_no_gpu(torch: Any) -> str:
    """Return what torch says when it is made to use a GPU, and a remedy."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.version.cuda:
        return (
            f"torch {torch.__version__} was built without CUDA. Remedy: install a build of torch for a CUDA version "
            "that the driver supports"
        )
    try:
        torch.cuda.init()
        said = f"torch.cuda.is_available() is False, and torch finds {torch.cuda.device_count()} devices"
    except Exception as error:
        said = f"torch {torch.__version__} for CUDA {torch.version.cuda}: {' '.join(str(error).split()).rstrip('.')}"
    shown = "" if hidden is None else f"unset CUDA_VISIBLE_DEVICES, which is {hidden!r}; otherwise "
    driver = "update the driver, or install a build of torch for a CUDA version that the driver supports"
    return f"{said}. Remedy: {shown}{driver}"


def _gpus() -> dict[str, Any]:
    """Return the GPUs that torch can use, the CUDA version it was built for, and why there are no GPUs."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return {"gpus": [], "cuda": None, "why_no_gpu": f"torch cannot be imported: {error}. Remedy: install torch"}
    cuda = torch.version.cuda
    if not torch.cuda.is_available():
        return {"gpus": [], "cuda": cuda, "why_no_gpu": _why_no_gpu(torch)}
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = [
        {"name": one.name, "capability": f"{one.major}.{one.minor}", "memory": one.total_memory,
         "multiprocessors": one.multi_processor_count, "l2_bytes": getattr(one, "L2_cache_size", None)}
        for one in found
    ]  # fmt: skip
    return {"gpus": gpus, "cuda": cuda, "why_no_gpu": None}


def describe_machine() -> dict[str, Any]:
    """Describe what stays the same between runs on this machine."""
    return {
        "python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(),
        "processor": processor(), **_gpus(), "packages": {name: version(name) for name in PACKAGES},
        "tools": {name: find_tool(name) for name in ("compute-sanitizer", "nvcc")},
    }  # fmt: skip


def listed_gpus() -> list[str]:
    """Return the names of the GPUs that nvidia-smi lists, whether torch can use them or not."""
    lines = (_output("nvidia-smi", "--list-gpus") or "").splitlines()
    return [line.partition(" (UUID")[0] for line in lines if line.startswith("GPU ")]


def gpu_state() -> str | None:
    """Return clocks, power and utilization as reported by nvidia-smi."""
    return _output("nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv")


def sources_digest() -> str:
    """Return a digest of the code that numbers depend on, for checkouts without their history."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and file.suffix in {".py", ".cu", ".cuh", ".cpp", ".h"}:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Load(NamedTuple):
    """Other load on the machine meanwhile.

    average: runnable processes over the last minute, including this one. others: cores that other processes used; None
    if the system does not report it.
    """

    average: float | None
    others: float | None


def _busy_seconds() -> float | None:
    """Return the processor seconds used by all processes since the system started."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


SHORTEST = 0.2  # seconds below which the system's ticks of 10 ms are too coarse


class LoadWatch:
    """Measure what other processes did, from its creation to `load()`."""

    def __init__(self) -> None:
        self._start = time.monotonic(), _busy_seconds(), _own_seconds()

    def load(self) -> Load:
        """Return the load so far."""
        average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        start, before, own = self._start
        after, elapsed = _busy_seconds(), time.monotonic() - start
        if before is None or after is None or after <= before or elapsed < SHORTEST:
            return Load(average, None)
        others = (after - before) - (_own_seconds() - own)
        return Load(average, round(max(0.0, others / elapsed), 2))


OTHERS = 0.25  # cores that other processes may use, or a twentieth of the machine's if that is more
SPREAD = 0.5  # largest distance between the turns' 10th and 90th percentiles, relative to the median


def why_busy(load: Load, spread: float, threads: int) -> str | None:
    """Return why the machine counts as busy with something else during a measurement, or None."""
    count, reasons = os.cpu_count() or 1, []
    if load.others is not None:
        if load.others > max(OTHERS, 0.05 * count):
            reasons.append(f"others used {load.others:.2g} of {count} cores")
    elif load.average is not None and load.average > threads + OTHERS:
        reasons.append(f"load average {load.average:.2g} with {threads} threads of our own")
    if spread > SPREAD:
        reasons.append(f"turns spread over {spread:.0%} of the median")
    return ", ".join(reasons) or None


if __name__ == "__main__":
    print(json.dumps(describe_machine()))
