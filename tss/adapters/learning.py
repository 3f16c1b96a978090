"""The tasks that are being learned, as ordinary module state: checkpoints of other tools hold them by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote, unquote

import torch
from torch import nn

from tss.adapters.fingerprints import is_sharded
from tss.adapters.float32 import Float32Module
from tss.errors import StateError

PREFIX = "task-"


class LearningTask(Float32Module):
    """The head being trained, if there is one, and a mark by which a checkpoint tells the task."""

    begun: torch.Tensor

    def __init__(self, head: nn.Module | None) -> None:
        super().__init__()
        self.register_buffer("begun", torch.ones(1))
        self.head = head


class TasksLearned(nn.Module):
    """Holds each task being learned by its name: "learning.task-<name>.…" in a `state_dict`."""

    def put(self, name: str, task: LearningTask, device: torch.device) -> None:
        """Begin to learn a task, in the mode that this module is in."""
        self.add_module(module_name(name), task.to(device).train(self.training))

    def of(self, name: str) -> LearningTask:
        """What is being learned of a task."""
        task = self._modules[module_name(name)]
        assert isinstance(task, LearningTask)
        return task

    def take(self, name: str) -> None:
        """End learning of one task of several: its head no longer requires gradients, and is not held."""
        self.of(name).requires_grad_(False)
        del self._modules[module_name(name)]

    def clear_with(self, require_grad: Callable[[bool], None]) -> None:
        """End learning: nothing requires gradients any more, and nothing is held."""
        require_grad(False)
        self._modules.clear()


def module_name(task: str) -> str:
    """A task's name as a module may be called: without dots."""
    return PREFIX + quote(task, safe=" ").replace(".", "%2E")


def tasks_in(keys: Iterable[str]) -> set[str]:
    """The tasks that the keys of a state dictionary, less their prefix, belong to."""
    return {unquote(key.split(".", 1)[0].removeprefix(PREFIX)) for key in keys if key.startswith(PREFIX)}


def check_whole(layers: Mapping[str, nn.Module]) -> None:
    """Raise StateError if adapters lie in parts on several processes: gates could be neither read nor kept."""
    if sharded := [name for name, layer in layers.items() if any(map(is_sharded, layer.parameters()))]:
        raise StateError(
            f"{sharded[0]} is sharded over processes, so its gates cannot be read: shard the backbone alone, with "
            "fully_shard(model.backbone), and average the gradients of model.tss.trainable_parameters() over the "
            "processes; adapters take a few megabytes"
        )
