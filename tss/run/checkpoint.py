"""Checkpoint inside a task: everything that the next optimizer step depends on, in one safetensors file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tss.adapters.storage import read_tensors, write_tensors
from tss.errors import StateError
from tss.run.events import Written

Tensors = dict[str, torch.Tensor]
OptimizerState = dict[int, dict[str, Any]]


@dataclass
class TaskProgress:
    """Progress in training a task, and its best state so far."""

    epoch: int = 0
    step: int = 0
    """Optimizer steps done in this epoch."""
    loss_sum: float = 0.0
    """Sum of the losses of those steps."""
    loss_sums: dict[str, float] = field(default_factory=dict)
    """Sums of the losses of those steps by task, if tasks are learned together."""
    best_epoch: int | None = None
    best_value: float | None = None
    """Value of that epoch, higher is better: the validation metric, or minus the validation loss."""
    best_loss: float | None = None
    """Validation loss of that epoch, which decides between epochs with the same metric."""
    stale: int = 0
    """Epochs since the best one."""
    seconds: float = 0.0
    unused: list[str] = field(default_factory=list)
    """Layers that the task does not run: no gradient reached them."""
    best: Tensors = field(default_factory=dict)
    """Learning state (scores or weights, and head) at the end of the best epoch."""

    def numbers(self) -> dict[str, Any]:
        """Return all fields except the tensors."""
        return {key: value for key, value in vars(self).items() if key != "best"}


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint inside a task of one run."""

    run: str
    task: str
    index: int
    written: Written
    """Events up to the checkpoint."""
    progress: TaskProgress
    learning: Tensors
    optimizer: OptimizerState = field(default_factory=dict)


def save_checkpoint(path: Path, place: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint atomically; tensors are named learning/…, best/… and optimizer/<parameter>/<key>."""
    moments, numbers = flatten_optimizer(optimizer)
    tensors = {
        **{f"learning/{name}": value for name, value in place.learning.items()},
        **{f"best/{name}": value for name, value in place.progress.best.items()},
        **moments,
    }
    about = {
        "run": place.run,
        "task": place.task,
        "index": place.index,
        "written": dataclasses.asdict(place.written),
        "progress": place.progress.numbers(),
        "optimizer": numbers,
    }
    write_tensors(path, {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, about)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        StateError: the file is truncated, was edited, or is not a checkpoint.
    """
    try:
        tensors, about = read_tensors(path)
        progress = TaskProgress(**about["progress"], best=_under(tensors, "best/"))
        optimizer = unflatten_optimizer(tensors, about["optimizer"])
        return Checkpoint(
            about["run"], about["task"], about["index"], Written(**about["written"]), progress,
            _under(tensors, "learning/"), optimizer,
        )  # fmt: skip
    except (StateError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) if isinstance(error, StateError) else f"{path} is not a checkpoint of a task ({error!r})"
        raise StateError(
            f"{reason}. To continue without it, delete this file: its task then starts from the beginning, "
            "and finished tasks are kept"
        ) from error


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Return an optimizer's state as tensors and plain numbers, both named optimizer/<parameter>/<key>."""
    tensors: Tensors = {}
    numbers: dict[str, Any] = {}
    for parameter, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            target = tensors if isinstance(value, torch.Tensor) else numbers
            target[f"optimizer/{parameter}/{key}"] = value
    return tensors, numbers


def unflatten_optimizer(tensors: Tensors, numbers: dict[str, Any]) -> OptimizerState:
    """Invert `flatten_optimizer`: return parameter -> key -> value."""
    state: OptimizerState = {}
    for name, value in {**tensors, **numbers}.items():
        prefix, _, rest = name.partition("/")
        if prefix == "optimizer":
            parameter, _, key = rest.partition("/")
            state.setdefault(int(parameter), {})[key] = value
    return state


def restore_optimizer(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Load saved state into an optimizer over the same parameters; its learning rates are unchanged."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
