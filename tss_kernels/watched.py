"""Parameters that tell whether anything has written to them, and whether nothing but PyTorch itself runs."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_PLAIN_TYPES = (torch.Tensor, nn.Parameter)


class Watched(nn.Parameter):
    """A parameter whose `state` differs after every write that PyTorch can see.

    It follows PyTorch's version counters: the parameter's, and that of what `.data` gives, which counts for itself.
    Optimizers that write past the counters (torch's fused ones do) are followed by a hook on their step. What writes to
    the memory and tells PyTorch nothing must call `note_write`.
    """

    _alias: torch.Tensor | None = None
    _noted: int = 0

    def __new__(cls, data: torch.Tensor, requires_grad: bool = True) -> Any:
        _follow_optimizers()
        return super().__new__(cls, data, requires_grad)

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """The values without gradient; always the same tensor, whose version counter tells of writes through it."""
        raw = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        alias = self._alias
        if alias is None or alias.data_ptr() != raw.data_ptr() or alias.shape != raw.shape or alias.dtype != raw.dtype:
            alias = self._alias = raw
            self.note_write()
        return alias

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        self._alias = None
        self.note_write()
        torch.Tensor.data.__set__(self, values)  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Files hold a plain parameter: they need neither this class nor what is known of its values.
        values = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return nn.Parameter(values, self.requires_grad).__reduce_ex__(protocol)

    def note_write(self) -> None:
        """Something wrote to the values, or may have."""
        self._noted += 1

    def state(self) -> tuple[int, ...]:
        """Equal to what it was before if and only if nothing has written to the values since."""
        alias = self._alias
        return self._version, 0 if alias is None else alias._version, self._noted, self.data_ptr()


class Frozen(Watched):
    """A weight that is not trained."""

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False) -> Frozen:
        return super().__new__(cls, data, requires_grad)


@functools.cache
def _follow_optimizers() -> None:
    """Have parameters told of every step of any torch optimizer; set up with the first of them."""
    register_optimizer_step_post_hook(_note_stepped)


def _note_stepped(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    del args, kwargs
    # Compiled steps count what they write, and so do optimizers that say so.
    if torch.compiler.is_compiling() or getattr(optimizer, "counts_writes", False):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, Watched):
                parameter.note_write()


def undisturbed() -> bool:
    """Whether operations run at once and as they are: nothing compiles, traces, transforms or looks on."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
    )


def plain(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor's values lie in memory as they are: it has no class with a way of its own and is not negated
    when it is read. None is."""
    if tensor is None:
        return True
    kind = type(tensor)
    return (kind in _PLAIN_TYPES or issubclass(kind, Watched)) and not tensor.is_neg()
