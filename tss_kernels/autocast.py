"""Autocast: inputs are cast before an operation as torch's linear casts them, and nothing is cast inside it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def _is_cast(dtype: torch.dtype) -> bool:
    # Autocast leaves float64 and integers alone.
    return dtype.is_floating_point and dtype != torch.float64


def _cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    # What is no tensor is refused later, by the checks that name it.
    return tensor.to(dtype) if isinstance(tensor, torch.Tensor) and _is_cast(tensor.dtype) else tensor


def _is_on(x: torch.Tensor) -> bool:
    """Whether autocast is on for x's device."""
    if not torch._C._is_any_autocast_enabled():  # in most programs, and much sooner asked
        return False
    if not isinstance(x, torch.Tensor):
        return False
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_inputs(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x, weight and bias in autocast's dtype where autocast is on for x's device, else as they are."""
    if not _is_on(x):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return _cast(x, dtype), _cast(weight, dtype), _cast(bias, dtype)  # type: ignore[return-value]


def autocast_weights(x: torch.Tensor, *weights: torch.Tensor | None) -> tuple[torch.dtype, tuple[Any, ...]]:
    """The dtype that torch's linear computes in for x, and weights as it would cast them; x itself is not cast here."""
    if not _is_on(x):
        return x.dtype, weights
    dtype = torch.get_autocast_dtype(x.device.type)
    return dtype if _is_cast(x.dtype) else x.dtype, tuple(_cast(weight, dtype) for weight in weights)


def outside_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """The function with autocast off: an operator's body computes in the dtypes that it is given.

    Its first argument is a tensor, whose device's autocast is meant.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        x: torch.Tensor = args[0]  # type: ignore[assignment]
        if not _is_on(x):
            return function(*args, **kwargs)
        with torch.autocast(x.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped
