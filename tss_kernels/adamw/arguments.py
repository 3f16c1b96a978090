"""Arguments of a step, and their checks before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from tss_kernels.overlap import Memory, refuse_overlap
from tss_kernels.tensors import is_watched
from tss_kernels.validation import FLOATING, check_choice, check_floating

SITES = ("update", "gradient")
_shape, _kind, _is_neg = attrgetter("shape"), attrgetter("dtype", "device", "layout"), torch.Tensor.is_neg


class Lists(NamedTuple):
    """The tensors of a step: entry i of every list belongs to parameter i. Only an importance may be None."""

    params: list[torch.Tensor]
    grads: list[torch.Tensor]
    exp_avgs: list[torch.Tensor]
    exp_avg_sqs: list[torch.Tensor]
    importances: list[torch.Tensor | None]

    def written(self) -> list[torch.Tensor]:
        """Return the tensors that the step changes."""
        return [*self.params, *self.exp_avgs, *self.exp_avg_sqs]

    def some(self, chosen: Sequence[int]) -> Lists:
        """Return the entries at these indices, with lazy negation of importances resolved."""
        every: list[list[Any]] = [[entries[i] for i in chosen] for entries in self]
        # PyTorch resolves lazy negation, but not in lists that may contain None.
        every[4] = [None if soft is None else soft.resolve_neg() for soft in every[4]]
        return Lists(*every)


class Options(NamedTuple):
    """Options shared by all parameters of a step and by many steps."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    site: str


class _Rule(NamedTuple):
    least: float
    below: float
    says: str
    example: float


_FROM_0 = "at least 0 and finite"
_RULES = {
    "step": _Rule(1, math.inf, "at least 1, since steps count from 1, and finite", 1),
    "lr": _Rule(0, math.inf, _FROM_0, 1e-3),
    "beta": _Rule(0, 1, "in [0, 1)", 0.9),
    "eps": _Rule(0, math.inf, _FROM_0, 1e-8),
    "weight_decay": _Rule(0, math.inf, _FROM_0, 0.01),
}


def checked_number(kind: str, value: Any, name: str | None = None) -> float:
    """Return a number, or a tensor of one element, as a float if the rule of its kind allows the value.

    kind: step, lr, beta, eps or weight_decay; messages use it as the name unless `name` is given. Raises ValueError,
    TypeError.
    """
    least, below, says, example = _RULES[kind]
    if type(value) is float and least <= value < below:
        return value
    name = name or kind
    if isinstance(value, torch.Tensor):
        value = _only_element(name, value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number but is {value!r}, a {type(value).__name__}: pass one such as {example}"
        )
    number = float(value)
    if not least <= number < below:
        raise ValueError(f"{name} must be {says}, but is {value}: pass a number such as {example}")
    return number


def _only_element(name: str, tensor: torch.Tensor) -> Any:
    if tensor.numel() != 1:
        raise ValueError(
            f"{name} must be one number but is a tensor of shape {tuple(tensor.shape)}: pass one number, or use groups"
        )
    return tensor.item()


def checked_options(beta1: Any, beta2: Any, eps: Any, weight_decay: Any, site: str) -> Options:
    """Return the options, each checked. Raises ValueError, TypeError."""
    check_choice("site", site, SITES)
    return Options(
        checked_number("beta", beta1, "beta1"),
        checked_number("beta", beta2, "beta2"),
        checked_number("eps", eps),
        checked_number("weight_decay", weight_decay),
        site,
    )


def check_lists(lists: Lists) -> Memory | None:
    """Check for one dense floating entry per parameter, of its shape and device, and that written memory is not shared.

    Returns the memory of the tensors (in the order params, exp_avgs, exp_avg_sqs, grads, importances that are not None)
    if all are plain: contiguous, on one device, of one dtype, without lazy negation, and outside any dispatch mode or
    trace. Else returns None. Raises ValueError, TypeError.
    """
    if torch.compiler.is_compiling():  # runs once for many steps
        _check_each(lists)
        return None
    every = [*lists.written(), *lists.grads, *(soft for soft in lists.importances if soft is not None)]
    alike = _all_alike(lists, every)
    if not alike:
        _check_each(lists)
    memory = Memory.of(every)
    if memory is None:
        return None
    found = memory.overlap(3 * len(lists.params), elementwise=False)
    if found is not None:
        refuse_overlap(*(_name_of(lists, index) for index in found))
    plain = alike and memory.contiguous and not (any(map(_is_neg, every)) or is_watched())
    return memory if plain else None


def _name_of(lists: Lists, index: int) -> str:
    """Return the name in messages of a tensor, by its index among all that are not None."""
    each = range(len(lists.params))
    names = [f"{name}[{i}]" for name in ("params", "exp_avgs", "exp_avg_sqs", "grads") for i in each]
    return [*names, *(f"importances[{i}]" for i in each if lists.importances[i] is not None)][index]


def _all_alike(lists: Lists, every: list[torch.Tensor]) -> bool:
    """Return whether all tensors are valid and have one dtype and device.

    Takes few Python steps: with many small tensors a step spends its time in checks.
    """
    params, grads, exp_avgs, exp_avg_sqs, importances = lists
    try:
        kinds, shapes = set(map(_kind, every)), list(map(_shape, params))
        if len(kinds) != 1 or len(importances) != len(shapes):
            return False
        soft_shapes = [p if soft is None else soft.shape for soft, p in zip(importances, shapes, strict=True)]
        ((dtype, _, layout),) = kinds
        return (
            dtype in FLOATING
            and layout is torch.strided
            and shapes == list(map(_shape, grads)) == list(map(_shape, exp_avgs)) == list(map(_shape, exp_avg_sqs))
            and shapes == soft_shapes
        )
    except AttributeError:  # something is not a tensor
        return False


def _check_each(lists: Lists) -> None:
    """Raise the error of the first entry that does not fit its parameter."""
    params = lists.params
    for name, tensors in lists._asdict().items():
        if len(tensors) != len(params):
            raise ValueError(f"{name} must have one entry per parameter, {len(params)}, but has {len(tensors)}")
        for index, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
            if tensor is not None or name != "importances":
                _check_entry(f"{name}[{index}]", tensor, param)


def _check_entry(name: str, tensor: Any, param: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{name} must be a tensor but is {tensor!r}, a {type(tensor).__name__}: only an importance may be None"
        )
    check_floating(name, tensor)
    if tensor.shape != param.shape:
        raise ValueError(
            f"{name} must have its parameter's shape {tuple(param.shape)} but has {tuple(tensor.shape)}: pass one "
            f"tensor per parameter"
        )
    if tensor.device != param.device:
        raise ValueError(
            f"{name} must be on its parameter's device {param.device} but is on {tensor.device}: move it with .to()"
        )
