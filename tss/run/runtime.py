"""Device, precision and memory."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tss.errors import StateError, TssError
from tss.run.processes import ALONE, Processes
from tss.tasks.base import PAD_MULTIPLE

if TYPE_CHECKING:
    from tss.methods.base import Batch


BATCH_COST = 64
"""Tokens that take the embedded backbone as long on one core as its calls do, about 5 ms (docs/profile-cpu.md)."""

NO_MEMORY = ("can't allocate memory", "not enough memory", "calculation overflowed", "multiplication overflowed")
"""Parts of the messages of plain RuntimeErrors that PyTorch raises for sizes beyond any memory."""


def wait(device: torch.device) -> None:
    """Wait until a device has finished what was started on it, before its time is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Runtime:
    """Device, precision of matrix products ("float32" or "bfloat16"), and the processes that run together."""

    device: torch.device
    precision: str
    processes: Processes = ALONE

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context with products in bfloat16 if that is the precision, else one that changes nothing."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    @property
    def pad_multiple(self) -> int:
        """Multiple that batch lengths are rounded up to: tensor cores want multiples of eight, a CPU does not."""
        return PAD_MULTIPLE if self.device.type == "cuda" else 1

    @property
    def batch_cost(self) -> int | None:
        """The `batch_cost` for `examples.by_length`: on a CPU, small batches are cheap; a GPU needs full ones."""
        return None if self.device.type == "cuda" else BATCH_COST

    def to_device(self, batch: Batch) -> Batch:
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def reset_peak(self) -> None:
        """Start a new measurement of peak memory (on CUDA; a process's own peak cannot be reset)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """Return peak memory: allocated on the CUDA device since `reset_peak`, or resident in this process so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def signature(self) -> dict[str, Any]:
        """Return what bit-identical logits depend on besides weights and inputs."""
        on_cuda = self.device.type == "cuda"
        return {
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "tss": version("tss"),
            "kernels": os.environ.get("TSS_KERNELS_BACKEND", "chosen"),
            "device": torch.cuda.get_device_name(self.device) if on_cuda else _processor(),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "processes": self.processes.count,
        }

    def environment(self) -> dict[str, Any]:
        """Return the signature, and what else readers of the results want to know about the machine."""
        return {
            **self.signature(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "cuda": torch.version.cuda if self.device.type == "cuda" else None,
            "safetensors": version("safetensors"),
            "datasets": version("datasets"),
        }


def _processor() -> str:
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def out_of_memory(error: Exception) -> str | None:
    """Return the message of an out-of-memory error in one line; None for other errors."""
    text = str(error)
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(sign in text for sign in NO_MEMORY):
        return None
    return text.splitlines()[0] if text else "no detail"


@contextlib.contextmanager
def memory_errors(task: str, batch_size: int) -> Iterator[None]:
    """Turn running out of memory into one clear error that names the task and the remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        detail = out_of_memory(error)
        if detail is None:
            raise
        raise TssError(
            f"task {task}: out of memory with batches of {batch_size} ({detail}); "
            "use gradient_checkpointing=true, a smaller batch_size with grad_accumulation, shorter source_length, or "
            "precision=bfloat16; "
            "finished tasks are kept"
        ) from error


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk (or a file-size limit or quota) into one clear error; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StateError(
            f"{folder}: {error.strerror} while writing {error.filename or 'the run'}; everything that was finished is "
            "kept: free some space there, then continue with --resume"
        ) from error
