"""`python -m tss_kernels`: what is there, what is not, and why."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib import metadata

import torch

from tss_kernels import dispatch


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def report() -> str:
    """The environment of the kernels as text: versions, devices, and for each backend which operations it runs."""
    lines = [
        f"python {platform.python_version()} on {platform.machine()} {sys.platform}, "
        f"torch {torch.__version__}, triton {_version('triton')}"
    ]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        lines += [f"{device}: {torch.cuda.get_device_name(device)}" for device in devices[1:]]
    else:
        lines.append("no CUDA device")
    lines.append(f"forced backend: {dispatch.forced_backend() or 'none'} (set {dispatch.VARIABLE} to force one)")
    lines.append(f"native extension: {'built' if importlib.util.find_spec('tss_kernels._native') else 'not built'}")
    for device in devices:
        for backend in dispatch.BACKENDS:
            reasons = {op: dispatch.why_not(backend, op, device, torch.float32) for op in dispatch.ROOMS}
            able = [op for op, reason in reasons.items() if reason is None]
            if able:
                lines.append(f"{device}, {backend}: {', '.join(able)}")
            else:
                lines.append(f"{device}, {backend}: nothing; {reasons['gated_linear']}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
