"""`tss env`: print the machine and the installation, for bug reports."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    *("tss", "torch", "triton", "transformers", "tokenizers", "accelerate", "datasets", "safetensors", "pydantic"),
    *("numpy", "scikit-learn", "seqeval", "sacrebleu", "rouge-score", "matplotlib", "rich"),
)
VARIABLES = (
    *("TSS_KERNELS_BACKEND", "TSS_DEBUG", "TSS_BART_TOKENIZER", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET", "HF_HUB_OFFLINE", "HF_HOME"),
)


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    return subparsers.add_parser(
        "env", parents=parents, help="print the environment, for bug reports", description=__doc__, allow_abbrev=False
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    facts = [
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("platform", platform.platform()),
        *((name, installed(name)) for name in PACKAGES),
        ("processors", f"{os.cpu_count()}"),
        (
            "torch threads",
            f"{torch.get_num_threads()} in an operation, {torch.get_num_interop_threads()} between operations",
        ),
        ("cuda", _cuda(torch)),
        *((name, os.environ[name]) for name in VARIABLES if name in os.environ),
    ]
    left = max(len(name) for name, _ in facts)
    print("\n".join(f"{name.ljust(left)}  {value}" for name, value in facts))
    print("\nkernels (python -m tss_kernels)")
    # print its output from this process, so that a closed pipe (`tss env | head`) stops one process, not two
    done = subprocess.run([sys.executable, "-m", "tss_kernels"], check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    return done.returncode


def installed(package: str) -> str:
    """Return the version of a package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda(torch: Any) -> str:
    if not torch.cuda.is_available():
        return f"no device (torch built for CUDA {torch.version.cuda or 'none'})"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}: {', '.join(names)}"
