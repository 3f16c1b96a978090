"""What this machine has, as JSON: `python -m bench.measure.environment`. Nothing of it has to be there."""

from __future__ import annotations

import glob
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from datetime import date
from typing import Any

# What each package is for, where it is not the package's name that says it.
PACKAGES = {
    "torch": "everything",
    "triton": "the triton backend",
    "numpy": "tests",
    "pybind11": "compiling csrc",
    "ninja": "compiling csrc",
    "pytest": "tests",
    "hypothesis": "some tests",
    "pytest-xdist": "running tests side by side",
    "pytest-benchmark": "pytest bench/",
    "peft": "a rival of the training step",
    "transformers": "the training step, modules on Hugging Face models",
    "safetensors": "files of tss",
    "pydantic": "the command line of tss",
    "datasets": "data sets of the hub",
    "seqeval": "entity F1",
    "rouge-score": "ROUGE",
    "sacrebleu": "BLEU",
    "scikit-learn": "F1",
}
SMI_FIELDS = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"
TOOL_FOLDERS = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/nvidia/*/bin", "/opt/cuda*/bin")


def version(package: str) -> str | None:
    """The installed version, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_tool(name: str) -> str | None:
    """Where a CUDA tool is: on the PATH or in one of CUDA's usual folders."""
    found = shutil.which(name)
    candidates = [path for folder in TOOL_FOLDERS for path in sorted(glob.glob(f"{folder}/{name}"), reverse=True)]
    return found or next((path for path in candidates if os.access(path, os.X_OK)), None)


def processor() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def file_name(machine: dict[str, Any], device: str, tiny: bool) -> str:
    """Of a machine's results of today: `<gpu>-<date>.json`, or `<cpu>-<n>-threads-<date>.json`."""
    name = machine["gpus"][0]["name"] if device == "cuda" else machine["processor"]
    threads = f"-{machine['threads']}-threads" if device == "cpu" and "threads" in machine else ""
    small = "-tiny" if tiny else ""
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}{threads}{small}-{date.today()}.json"


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _gpus() -> tuple[list[dict[str, Any]], str | None, str | None]:
    """The GPUs that torch can use, the CUDA version that it was built for, and why there are none."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return [], None, f"torch cannot be imported: {error}"
    cuda = torch.version.cuda
    if not torch.cuda.is_available():
        return [], cuda, "torch.cuda.is_available() is False" + ("" if cuda else ": this torch was built without CUDA")
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({
            "name": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "memory": properties.total_memory, "multiprocessors": properties.multi_processor_count,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
        })  # fmt: skip
    return gpus, cuda, None


def _kernels() -> str:
    """What `python -m tss_kernels` says."""
    try:
        return importlib.import_module("tss_kernels.__main__").report()
    except (ImportError, OSError) as error:
        return f"tss_kernels cannot be imported: {error}"


def probe() -> dict[str, Any]:
    """Everything found, in plain values."""
    gpus, cuda, why_none = _gpus()
    return {
        "python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(),
        "processor": processor(),
        "gpus": gpus, "why_no_gpu": why_none, "cuda": cuda,
        "nvidia_smi": _output("nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv"),
        "packages": {name: version(name) for name in PACKAGES},
        "tools": {name: find_tool(name) for name in ("compute-sanitizer", "nvcc")},
        "kernels": _kernels(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(probe()))
