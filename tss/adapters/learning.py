"""Tasks being trained, as ordinary module state: checkpoints of other tools store them under their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import torch
from torch import nn

from tss.adapters.fingerprints import is_sharded
from tss.adapters.float32 import Float32Module
from tss.errors import StateError

PREFIX = "task-"
BLOCK = 4096  # bytes by which `LearningTask.about` grows


class LearningTask(Float32Module):
    """Head being trained, if there is one, and what its training started with, which a checkpoint has to agree with.

    Attributes:
        content: the task's kind, the settings of the adapters and of training, and "sealed": the tasks that were sealed
            by then, hash -> name.
        about: `content` as JSON in uint8, padded so that its size is rarely another: some tools load tensors in place.
    """

    about: torch.Tensor

    def __init__(self, head: nn.Module | None, content: Mapping[str, Any]) -> None:
        super().__init__()
        text = json.dumps(content, sort_keys=True).encode()
        self.content = json.loads(text)
        text = text.ljust(-(-len(text) // BLOCK) * BLOCK)
        self.register_buffer("about", torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self.head = head


class TasksLearned(nn.Module):
    """Container of the tasks being trained, by name: "learning.task-<name>.…" in a `state_dict`."""

    def put(self, name: str, task: LearningTask, device: torch.device) -> None:
        """Add a task to be trained, in this module's mode (training or evaluation)."""
        self.add_module(module_name(name), task.to(device).train(self.training))

    def of(self, name: str) -> LearningTask:
        """Return the `LearningTask` of a task being trained."""
        task = self._modules[module_name(name)]
        assert isinstance(task, LearningTask)
        return task

    def take(self, name: str) -> None:
        """End training of one of several tasks: its head no longer requires gradients and is removed."""
        self.of(name).requires_grad_(False)
        del self._modules[module_name(name)]

    def clear_with(self, require_grad: Callable[[bool], None]) -> None:
        """End training: nothing requires gradients any more (`require_grad(False)`), and all tasks are removed."""
        require_grad(False)
        self._modules.clear()


def module_name(task: str) -> str:
    """Return a task's name as a module name, which must not contain dots."""
    return PREFIX + quote(task, safe=" ").replace(".", "%2E")


def read_about(about: torch.Tensor) -> dict[str, Any]:
    """Return the content of `LearningTask.about`, also of one that was cast.

    Raises:
        StateError: it is not one.
    """
    try:
        return json.loads(bytes(about.to(torch.uint8).tolist()))
    except ValueError as error:
        raise StateError(
            f"this checkpoint's record of its task cannot be read ({error}): it was written to, or made by another "
            "version of tss"
        ) from error


def tasks_in(keys: Iterable[str]) -> set[str]:
    """Return the tasks to which keys of a state dict, without their prefix, belong."""
    return {unquote(key.split(".", 1)[0].removeprefix(PREFIX)) for key in keys if key.startswith(PREFIX)}


def check_whole(layers: Mapping[str, nn.Module]) -> None:
    """Raise StateError if adapters are sharded over processes: gates could be neither read nor saved."""
    if sharded := [name for name, layer in layers.items() if any(map(is_sharded, layer.parameters()))]:
        raise StateError(
            f"{sharded[0]} is sharded over processes, so its gates cannot be read: shard the backbone alone, with "
            "fully_shard(model.backbone), and average the gradients of model.tss.trainable_parameters() over the "
            "processes; adapters take a few megabytes"
        )
