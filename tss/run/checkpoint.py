"""A saved place inside a task: everything that the next optimizer step depends on, in one safetensors file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tss.adapters.storage import read_tensors, write_tensors
from tss.errors import StateError

Tensors = dict[str, torch.Tensor]


@dataclass
class Position:
    """How far a task is learned, and its best state so far."""

    epoch: int = 0
    step: int = 0
    """Optimizer steps done in this epoch."""
    loss_sum: float = 0.0
    """Of those steps."""
    best_epoch: int | None = None
    best_value: float | None = None
    """Higher is better: the validation metric, or minus the validation loss."""
    stale: int = 0
    """Epochs since the best one."""
    seconds: float = 0.0
    best: Tensors = field(default_factory=dict)
    """Learning state (scores or weights, and head) at the end of the best epoch."""

    def numbers(self) -> dict[str, Any]:
        """All but the tensors."""
        return {key: value for key, value in vars(self).items() if key != "best"}


@dataclass(frozen=True)
class Saved:
    """A place read back from its file."""

    task: str
    index: int
    events_bytes: int
    position: Position
    learning: Tensors
    optimizer: dict[int, dict[str, Any]]


def save_checkpoint(
    path: Path,
    *,
    task: str,
    index: int,
    events_bytes: int,
    position: Position,
    learning: Tensors,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the place atomically; tensors are named learning/…, best/… and optimizer/<parameter>/…"""
    moments, numbers = flatten_optimizer(optimizer)
    tensors = {
        **{f"learning/{name}": value for name, value in learning.items()},
        **{f"best/{name}": value for name, value in position.best.items()},
        **moments,
    }
    write_tensors(
        path,
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        {
            "task": task,
            "index": index,
            "events_bytes": events_bytes,
            "position": position.numbers(),
            "optimizer": numbers,
        },
    )


def read_checkpoint(path: Path) -> Saved:
    """Read a place.

    Raises:
        StateError: if the file is truncated or was edited.
    """
    try:
        tensors, metadata = read_tensors(path)
    except StateError as error:
        raise StateError(
            f"{error}. To go on without it, delete this file: the task it belongs to then starts from its beginning, "
            "and finished tasks are kept"
        ) from error
    position = Position(**metadata["position"], best=_under(tensors, "best/"))
    return Saved(
        metadata["task"],
        metadata["index"],
        metadata["events_bytes"],
        position,
        _under(tensors, "learning/"),
        unflatten_optimizer(tensors, metadata["optimizer"]),
    )


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """An optimizer's state as tensors and plain numbers, both named optimizer/<parameter>/<key>."""
    tensors: Tensors = {}
    numbers: dict[str, Any] = {}
    for parameter, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            target = tensors if isinstance(value, torch.Tensor) else numbers
            target[f"optimizer/{parameter}/{key}"] = value
    return tensors, numbers


def unflatten_optimizer(tensors: Tensors, numbers: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The inverse of `flatten_optimizer`: parameter -> key -> value."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        prefix, _, rest = name.partition("/")
        if prefix == "optimizer":
            parameter, _, key = rest.partition("/")
            state.setdefault(int(parameter), {})[key] = value
    return state


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Give an optimizer over the same parameters its saved state; learning rates stay as they are."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
