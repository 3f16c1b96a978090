"""The class that an attached model becomes: the same model, whose forward pass answers for the active task."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle

Task = str | Sequence[str] | None


class TaskAware:
    """Mixin in front of a model's class; `task=` names the task of a call, one for all rows or one per row."""

    tss: Any  # the TssHandle; transformers evaluates annotations, where that name does not exist

    def generate(self, *args: Any, task: Task = None, **kwargs: Any) -> Any:
        """The model's own `generate`, run for `task`, or for the active task if it is None."""
        with self.tss.running(task):
            return super().generate(*args, **kwargs)  # type: ignore[misc]


def _forward_of(model_class: type[nn.Module]) -> Any:
    """A forward with the original's signature and `task`, which Trainer and generate inspect."""
    original = model_class.forward
    signature = inspect.signature(original)

    def forward(self: Any, *args: Any, task: Task = None, **kwargs: Any) -> Any:
        if args:
            bound = signature.bind_partial(self, *args)
            given = {name: value for name, value in bound.arguments.items() if name != next(iter(signature.parameters))}
            kwargs = given | kwargs
        if task is None:
            return self.tss.answer(original, kwargs)
        return self.tss.answer_for(task, original, kwargs)

    parameters = list(signature.parameters.values())
    extra = inspect.Parameter("task", inspect.Parameter.KEYWORD_ONLY, default=None)
    place = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[*parameters[:place], extra, *parameters[place:]])  # type: ignore[attr-defined]
    forward.__doc__ = original.__doc__
    return forward


@lru_cache
def task_aware(model_class: type[nn.Module]) -> type[nn.Module]:
    """The task-aware subclass of a model class; it keeps the name, which Hugging Face writes into configurations."""
    namespace = {
        "forward": _forward_of(model_class),
        "__module__": model_class.__module__,
        "original_class": model_class,
    }
    bases = (TaskAware, model_class) if hasattr(model_class, "generate") else (model_class,)
    return type(model_class.__name__, bases, namespace)


def _is_checkpointing(model: nn.Module) -> bool:
    # The first is the name that newer releases of transformers use; there the second one warns.
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(type(model), name):
            return bool(getattr(model, name))
    return False


def check_unchanged(model: nn.Module, handle: TssHandle, output: Any) -> None:
    """Under gradient checkpointing, make the backward pass of `output` fail if another task is active by then.

    Checkpointed layers run again in the backward pass, with the adapters as they are at that moment.
    """
    if not (torch.is_grad_enabled() and _is_checkpointing(model)):
        return
    tensor = output.loss if getattr(output, "loss", None) is not None else getattr(output, "logits", None)
    if tensor is None or not tensor.requires_grad:
        return
    before, name = handle.switches, handle.active

    def compare(gradient: torch.Tensor) -> None:
        if handle.switches != before:
            raise RuntimeError(
                "gradient checkpointing runs the layers again in the backward pass, but the active task was "
                f"{name!r} in the forward pass and is {handle.active!r} now: call backward() before switching tasks, "
                "inside the same `with model.tss.using(...)`"
            )

    tensor.register_hook(compare)
