"""Run in several processes, as `torchrun` and `accelerate launch` start them: each computes its part of every batch.

All processes go through the same run and have the same state. The first one writes the run's folder; the others write
to temporary folders of their own, so that the code of a run need not know how many processes there are.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

from tss.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """Position of this process among those of a run.

    Attributes:
        rank: rank of this process, from 0.
        count: number of processes.
        in_step: whether all must run the model at the same times, which is so if each holds a part of it.
    """

    rank: int = 0
    count: int = 1
    in_step: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports for all."""
        return self.rank == 0

    def rows(self, rows: Sequence[int]) -> Sequence[int]:
        """Return this process's part of a batch, at least one row, so that it computes as often as the others do."""
        return rows if self.count == 1 else rows[self.rank :: self.count] or rows[:1]

    def share(self, labels: Sequence[int]) -> float:
        """Return the weight of this process's mean over labels in the mean over all; 0 if its row is another's.

        Args:
            labels: number of labels that count in each row of the whole batch.
        """
        if self.count == 1:
            return 1.0
        return sum(labels[self.rank :: self.count]) / max(1, sum(labels))

    def batches(self, batches: Sequence[Item]) -> Sequence[Item]:
        """Return the batches that this process evaluates: all if `in_step`, else a part that no other process has."""
        return batches if self.in_step else batches[self.rank :: self.count]

    def together(self, mine: Mapping[int, Any]) -> dict[int, Any]:
        """Return the results of all processes, by number of the row or the batch."""
        if self.count == 1 or self.in_step:
            return dict(mine)
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, dict(mine))
        return {number: value for part in parts for number, value in part.items()}

    def add(self, loss: torch.Tensor, gradients: Sequence[torch.Tensor]) -> float:
        """Sum all processes' parts of a loss, and of gradients in place; all must pass gradients in the same order."""
        if self.count == 1:
            return loss.item()
        flat = torch.cat([loss.detach().reshape(1).float(), *(gradient.reshape(-1).float() for gradient in gradients)])
        distributed.all_reduce(flat)
        parts = flat[1:].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return flat[0].item()


ALONE = Processes()


def shard(core: torch.nn.Module) -> None:
    """Shard every layer of a model over the processes (FSDP2); whole layers are gathered only while they run."""
    from torch.distributed.fsdp import fully_shard

    for module in list(core.modules()):
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                fully_shard(layer)
    fully_shard(core)


def current(*, in_step: bool = False) -> Processes:
    """Return the processes of this run: those that have joined, or this one alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Processes(distributed.get_rank(), distributed.get_world_size(), in_step and distributed.get_world_size() > 1)


def expected() -> int:
    """Return the number of processes that the launcher started, including this one; 1 without a launcher."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() and "MASTER_ADDR" in os.environ else 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that the launcher started, unless the caller has joined them, and leave them at the end.

    Args:
        device: device in the run's configuration; on GPUs, each process uses the one of its local rank.

    Raises:
        ConfigError: accelerate was asked for several processes, but has started one.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate launch has started one process here, although several were asked for: give it --multi_gpu, "
            "also on CPUs, and not --cpu; or use torchrun --nproc-per-node"
        )
    if expected() == 1 or distributed.is_initialized():
        yield current()
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(local_rank())
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield current()
    finally:
        distributed.destroy_process_group()


def is_first() -> bool:
    """Return whether this process reports for all that the launcher started, also before they have joined."""
    return expected() == 1 or os.environ.get("RANK") == "0"


def local_rank() -> int:
    """Return the rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def own_folder(folder: Path, *, resume: bool) -> Iterator[Path]:
    """Yield the folder that this process writes: `folder` itself in the first one, else a copy removed at the end."""
    processes = current()
    if processes.count == 1:
        yield folder
        return
    files: list[Any] = [_contents(folder) if processes.first and resume and folder.is_dir() else None]
    distributed.broadcast_object_list(files)
    if processes.first:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tss-process-") as own:
        copy = Path(own) / "run"
        for name, content in (files[0] or {}).items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(content)
        yield copy


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
