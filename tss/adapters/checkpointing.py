"""Gradient checkpointing: layers recomputed in the backward pass run for the call of their forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from tss.adapters.task_call import calling, current_call

FUNCTION = "_gradient_checkpointing_func"  # transformers' attribute for it, on every module that uses checkpointing


def remember_calls(model: torch.nn.Module) -> None:
    """Wrap every checkpointing function of a model to remember its call, unless it is wrapped already."""
    for module in model.modules():
        function = getattr(module, FUNCTION, None)
        if function is not None and not _remembers(function):
            setattr(module, FUNCTION, partial(checkpoint_with_call, function))


def forget_calls(model: torch.nn.Module) -> None:
    """Undo `remember_calls`."""
    for module in model.modules():
        function = getattr(module, FUNCTION, None)
        if isinstance(function, partial) and _remembers(function):
            setattr(module, FUNCTION, function.args[0])


def checkpoint_with_call(checkpoint: Callable[..., Any], run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return checkpoint(run, *args), where `run` also runs for the current call when repeated in the backward pass."""
    call = current_call()
    if call is None:
        return checkpoint(run, *args, **kwargs)

    def run_as_now(*inputs: Any, **named: Any) -> Any:
        with calling(call):
            return run(*inputs, **named)

    # Reentrant checkpointing gives no gradients unless an input requires one; on a frozen model possibly none does.
    if call.active and call.gates is None and torch.is_grad_enabled() and _is_reentrant(checkpoint):
        tensors = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        if tensors and not any(args[i].requires_grad for i in tensors):
            first = tensors[0]
            args = (*args[:first], args[first].detach().requires_grad_(), *args[first + 1 :])
    return checkpoint(run_as_now, *args, **kwargs)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Set evaluation mode (no dropout) within a `with` block; restores the mode of every module.

    Layers with gradient checkpointing keep it: transformers' own is only for training mode, so that a pass with
    gradients in evaluation mode would need more memory than a training step.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing and not _replaced(module)
    ]
    with _evaluating(model):
        for layer in layers:
            layer.forward = partial(_forward_in_evaluation, layer)
        try:
            yield
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _forward_in_evaluation(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a layer with gradient checkpointing in evaluation mode, also when it is repeated after the mode has ended."""

    def run(*inputs: Any) -> Any:
        with _evaluating(layer):
            return type(layer).forward(layer, *inputs, **kwargs)

    if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:  # a cache must not be written twice
        return run(*args)
    return getattr(layer, FUNCTION)(run, *args)


def _replaced(layer: torch.nn.Module) -> bool:
    return "forward" in vars(layer)


def _remembers(function: Any) -> bool:
    return isinstance(function, partial) and function.func is checkpoint_with_call


def _is_reentrant(checkpoint: Callable[..., Any]) -> bool:
    # transformers binds the user's settings with partial; torch defaults to reentrant checkpointing.
    return bool(getattr(checkpoint, "keywords", {}).get("use_reentrant", True))
