"""Autocast: cast the inputs of an operation as torch's linear does, and nothing inside it."""

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
    # Anything that is not a tensor is rejected later, by the checks that name the argument.
    return tensor.to(dtype) if isinstance(tensor, torch.Tensor) and _is_cast(tensor.dtype) else tensor


def _is_on(x: torch.Tensor) -> bool:
    """Return whether autocast is on for x's device."""
    if not torch._C._is_any_autocast_enabled():  # true in most programs, and a much cheaper check
        return False
    if not isinstance(x, torch.Tensor):
        return False
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_inputs(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return x, weight and bias in autocast's dtype if autocast is on for x's device, else unchanged."""
    if not _is_on(x):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return _cast(x, dtype), _cast(weight, dtype), _cast(bias, dtype)  # type: ignore[return-value]


def autocast_weights(x: torch.Tensor, *weights: torch.Tensor | None) -> tuple[torch.dtype, tuple[Any, ...]]:
    """Return the dtype in which torch's linear computes for x, and the weights as it casts them; x is not cast here."""
    if not _is_on(x):
        return x.dtype, weights
    dtype = torch.get_autocast_dtype(x.device.type)
    return dtype if _is_cast(x.dtype) else x.dtype, tuple(_cast(weight, dtype) for weight in weights)


def outside_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function to run with autocast off: an operator's body computes in the dtypes of its arguments.

    Autocast is turned off for the device of the first argument, which must be a tensor.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        x: torch.Tensor = args[0]  # type: ignore[assignment]
        if not _is_on(x):
            return function(*args, **kwargs)
        with torch.autocast(x.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped
