"""`python -m tss_kernels`: show which backends this machine has, which it lacks, and why; for bug reports."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys

import torch

from tss_kernels.backends.dispatch import VARIABLE, default_backend, forced_backend
from tss_kernels.backends.registry import (
    BACKENDS,
    INSTALLED,
    OPERATIONS,
    build_record,
    emulated,
    interpreted,
    missing,
    why_not,
)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[torch.device]:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(gpus))]


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{platform.machine()}, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"


def _backend_line(backend: str, device: torch.device) -> str:
    obstacle = missing(backend) or why_not(backend, "gated_linear", device, torch.float32)
    if obstacle is not None:
        return f"  {backend:<10} no: {obstacle.reason}; {obstacle.remedy}"
    runs = [op for op in OPERATIONS if why_not(backend, op, device, torch.float32) is None]
    default = [op for op in runs if default_backend(op, device, torch.float32) == backend]
    return f"  {backend:<10} yes: {', '.join(runs)}; default for {', '.join(default) or 'none'}"


def _built(backend: str) -> str:
    """Return what the installation compiled for a backend and with what, or why it did not."""
    part = build_record().get(f"_{backend}")
    if part is None:
        return "built" if INSTALLED[backend] else "not built, and the installation left no record of why"
    if not part["built"]:
        return f"not built: {part['how']}; {part['remedy']}, then install again"
    found = f"built with {part['how']}"
    return found if INSTALLED[backend] else f"{found}, but its file is gone: install again"


def _obstacle() -> str:
    """Return why the compiled CUDA kernels cannot run here, as their runtime says it; empty if they can."""
    if not INSTALLED["cuda"]:
        return ""
    try:
        obstacle = importlib.import_module("tss_kernels._cuda").obstacle()
    except ImportError as error:
        obstacle = str(error)
    return f" (cannot run here: {obstacle})" if obstacle else ""


def report() -> str:
    """Return the environment as text: versions, builds, devices, and for each device what every backend runs."""
    forced = forced_backend()
    lines = [
        f"python {platform.python_version()} on {platform.platform()}",
        f"torch {torch.__version__} (CUDA {torch.version.cuda or 'not built in'}), triton {_version('triton')}",
        f"C++ for the CPU: {_built('native')}",
        f"CUDA C++: {_built('cuda')}{_obstacle()}",
        f"{VARIABLE}: {forced or 'not set'}; Triton's interpreter: {'on' if interpreted() else 'off'}; "
        f"CUDA kernels emulated on the CPU: {'on' if emulated() else 'off'}",
    ]
    for device in _devices():
        lines.append(f"{device}: {_name(device)}")
        lines += [_backend_line(backend, device) for backend in BACKENDS]
    if not torch.cuda.is_available():
        lines.append("cuda: no device, or a torch without CUDA")
    if forced is not None and forced not in BACKENDS:
        lines.append(f"{VARIABLE} is {forced!r}, which is not a backend: set it to one of {', '.join(BACKENDS)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
    sys.exit(forced_backend() not in (None, *BACKENDS))
