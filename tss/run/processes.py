"""A run in several processes, as `torchrun` and `accelerate launch` start them: each computes its part of every batch.

All processes go through the same run and hold the same state. The first one writes the run's folder; the others write
theirs where nobody looks, so that nothing of a run has to know how many there are.
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

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: from 0.
        count: of all.
        in_step: whether all have to run the model at the same times, as they do where each holds a part of it.
    """

    rank: int = 0
    count: int = 1
    in_step: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def rows(self, rows: Sequence[int]) -> Sequence[int]:
        """This process's part of a batch, of at least one row, so that it computes as often as the others do."""
        return rows if self.count == 1 else rows[self.rank :: self.count] or rows[:1]

    def share(self, labels: Sequence[int]) -> float:
        """The weight of this process's mean over labels in the mean over all; 0 for a row that is another's.

        Args:
            labels: how many labels of each row of the whole batch count.
        """
        if self.count == 1:
            return 1.0
        return sum(labels[self.rank :: self.count]) / max(1, sum(labels))

    def batches(self, batches: Sequence[Item]) -> Sequence[Item]:
        """The batches that this process evaluates: every batch is some process's, and no other's."""
        return batches if self.in_step else batches[self.rank :: self.count]

    def together(self, mine: Mapping[int, Any]) -> dict[int, Any]:
        """What all processes have found, by number of the row or the batch."""
        if self.count == 1 or self.in_step:
            return dict(mine)
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, dict(mine))
        return {number: value for part in parts for number, value in part.items()}

    def add(self, loss: torch.Tensor, gradients: Sequence[torch.Tensor]) -> float:
        """Add up every process's part of a loss, and of the gradients in place, in the same order in all of them."""
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
    """Give each process a part of every layer of a model (FSDP2); whole layers come together only while they run."""
    from torch.distributed.fsdp import fully_shard

    for module in list(core.modules()):
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                fully_shard(layer)
    fully_shard(core)


def current(*, in_step: bool = False) -> Processes:
    """The processes of this run: those that have joined, or this one alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Processes(distributed.get_rank(), distributed.get_world_size(), in_step and distributed.get_world_size() > 1)


def expected() -> int:
    """How many processes the launcher has started, of which this is one; 1 without a launcher."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() and "MASTER_ADDR" in os.environ else 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that the launcher started, unless the caller has, and leave them at the end.

    Args:
        device: of the run's configuration; on GPUs each process takes the one of its local rank.
    """
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
    """Whether this process is the one that speaks for those that the launcher started, also before they have joined."""
    return expected() == 1 or os.environ.get("RANK") == "0"


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def own_folder(folder: Path, *, resume: bool) -> Iterator[Path]:
    """Where this process writes its run: the folder itself in the first one, else a copy that goes at the end."""
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
