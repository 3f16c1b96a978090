"""Gradient checkpointing: layers that run again in the backward pass run as the task of their forward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle

FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps it, on every module that checkpoints


def remember_tasks(handle: TssHandle) -> None:
    """Make every checkpointing function of the handle's model remember the task; those that do already are left."""
    for module in handle.model.modules():
        function = getattr(module, FUNCTION, None)
        if function is not None and not _remembers(function):
            setattr(module, FUNCTION, partial(checkpoint_with_task, handle, function))


def forget_tasks(model: torch.nn.Module) -> None:
    """Undo `remember_tasks`."""
    for module in model.modules():
        function = getattr(module, FUNCTION, None)
        if isinstance(function, partial) and _remembers(function):
            setattr(module, FUNCTION, function.args[1])


def checkpoint_with_task(
    handle: TssHandle, checkpoint: Callable[..., Any], run: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """checkpoint(run, *args), where `run` in the backward pass sees the task that is active now."""
    selection = handle.selection

    def run_as_now(*inputs: Any, **named: Any) -> Any:
        with handle.recalling(selection):
            return run(*inputs, **named)

    # The reentrant form gives no gradient at all unless an input requires one; on a frozen model none may.
    if handle.trainable is not None and torch.is_grad_enabled() and _is_reentrant(checkpoint):
        tensors = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        if tensors and not any(args[i].requires_grad for i in tensors):
            first = tensors[0]
            args = (*args[:first], args[first].detach().requires_grad_(), *args[first + 1 :])
    return checkpoint(run_as_now, *args, **kwargs)


def _remembers(function: Any) -> bool:
    return isinstance(function, partial) and function.func is checkpoint_with_task


def _is_reentrant(checkpoint: Callable[..., Any]) -> bool:
    # transformers binds the user's settings with partial; torch's own default is the reentrant form.
    return bool(getattr(checkpoint, "keywords", {}).get("use_reentrant", True))
