"""The class that an attached model becomes: the same model, whose forward pass answers for the active task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import nn

from tss.adapters.answering import answer, check_generates
from tss.adapters.checkpointing import remember_tasks

Task = str | Sequence[str] | None


def original_class(model_class: type[nn.Module]) -> type[nn.Module]:
    """The class that `with_tasks` derived this one from."""
    return vars(model_class)["_tss_original"]


@cache
def with_tasks(model_class: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a model class whose forward pass and `generate` take `task=`.

    It keeps the name, which transformers writes into configurations.
    """
    namespace: dict[str, Any] = {
        "__module__": model_class.__module__,
        "__qualname__": model_class.__qualname__,
        "__doc__": model_class.__doc__,
        "_tss_original": model_class,
        # The loss of a task's head is a mean: Trainer must divide it when it accumulates gradients.
        "accepts_loss_kwargs": False,
        "forward": _forward(model_class),
        "__reduce_ex__": _reduce,
    }
    for name, make in (("generate", _generate), ("_set_gradient_checkpointing", _set_checkpointing)):
        if hasattr(model_class, name):
            namespace[name] = make(getattr(model_class, name))
    return type(model_class.__name__, (model_class,), namespace)


def _forward(model_class: type[nn.Module]) -> Callable[..., Any]:
    """A forward with the signature of the original and `task`: Trainer and generate look at it."""
    original = model_class.forward
    signature = inspect.signature(original)
    own = next(iter(signature.parameters))

    def forward(self: Any, *args: Any, task: Task = None, **kwargs: Any) -> Any:
        if args:
            given = signature.bind_partial(self, *args).arguments
            kwargs = {name: value for name, value in given.items() if name != own} | kwargs
        with self.tss.selecting(task):
            return answer(self, original, kwargs)

    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(x, keyword, default=None) for x in ("labels", "task") if x not in signature.parameters]
    parameters = list(signature.parameters.values())
    place = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[*parameters[:place], *added, *parameters[place:]])  # type: ignore[attr-defined]
    forward.__doc__ = original.__doc__
    return forward


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate(self: Any, *args: Any, task: Task = None, **kwargs: Any) -> Any:
        """The model's own `generate`, for `task` (one, or one per row), or for the active task if it is None."""
        with self.tss.selecting(task):
            check_generates(self.tss)
            return original(self, *args, **kwargs)

    return generate


def _set_checkpointing(original: Callable[..., Any]) -> Callable[..., Any]:
    def _set_gradient_checkpointing(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        remember_tasks(self.tss)
        return result

    return _set_gradient_checkpointing


def _reduce(self: Any, protocol: int) -> Any:
    """Copy and pickle by way of the original class: nobody can look this one up by its name."""
    return _rebuild, (original_class(type(self)),), self.__dict__


def _rebuild(model_class: type[nn.Module]) -> nn.Module:
    derived = with_tasks(model_class)
    return derived.__new__(derived)
