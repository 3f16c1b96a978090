"""What lies below the first adapter: frozen, so that an example's hidden states there are the same in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tss.adapters.bank import ATTRIBUTE, run_adapter

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle


class _Reached(Exception):
    pass


class Prefix:
    """The layers of the stack that reads the inputs, up to the first one with an adapter, whose adapter ends it.

    Args:
        handle: of the model.
        stack: the encoder, or the base model of a model that has one stack.
        layers: the stack's layers.
        first: index of the first layer with an adapter.
        site: the module in it whose output is adapted, and is the layer's output.
    """

    def __init__(self, handle: TssHandle, stack: nn.Module, layers: nn.ModuleList, first: int, site: nn.Module) -> None:
        self.handle, self.stack, self.layers, self.first, self.site = handle, stack, layers, first, site

    @torch.no_grad()
    def compute(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Hidden states (B, L, H) of a batch just before the first adapter.

        None where the adapted layer goes on behind its site, so that these states are not all that it hands on.
        """
        seen: list[Any] = []

        def note(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output)
            if module is not self.site:
                raise _Reached  # the rest of the stack is not needed

        with self.handle.using(None), ExitStack() as stack:
            for module in (self.site, self.layers[self.first]):
                stack.callback(module.register_forward_hook(note).remove)
            with suppress(_Reached):
                self.stack(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        ends = len(seen) == 2 and all(isinstance(output, torch.Tensor) for output in seen)
        return seen[0] if ends and torch.equal(*seen) else None

    @contextmanager
    def given(self, hidden: torch.Tensor) -> Iterator[None]:
        """For a while, a pass over the batch that `hidden` was computed for begins with the first adapter."""

        def adapt(*args: Any, **kwargs: Any) -> torch.Tensor:
            adapted = run_adapter(self.site, None, hidden)
            return hidden if adapted is None else adapted

        with ExitStack() as stack:
            for layer in self.layers[: self.first]:
                stack.enter_context(_replaced(layer, _pass_on))
            stack.enter_context(_replaced(self.layers[self.first], adapt))
            yield


def find_prefix(handle: TssHandle) -> Prefix | None:
    """What lies below the first adapter that a batch meets.

    None where nothing that can be skipped does: an adapter inside the first layers or before them, or dropout.
    """
    model = handle.model
    settings = model.config.to_dict()
    if any(value for key, value in settings.items() if "drop" in key and key != "classifier_dropout"):
        return None
    stack: nn.Module = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    layers = next((module for module in stack.modules() if isinstance(module, nn.ModuleList)), nn.ModuleList())
    inside = [[module for module in layer.modules() if ATTRIBUTE in module._modules] for layer in layers]
    everywhere = [module for module in stack.modules() if ATTRIBUTE in module._modules]
    first = next((i for i, sites in enumerate(inside) if sites), None)
    if first is None or len(inside[first]) != 1 or len(everywhere) != sum(map(len, inside)):
        return None
    return Prefix(handle, stack, layers, first, inside[first][0])


@contextmanager
def given(model: Any, hidden: torch.Tensor | None) -> Iterator[None]:
    """`Prefix.given` for an attached model; nothing for None."""
    if hidden is None:
        yield
        return
    with model.tss.prefix.given(hidden):
        yield


def _pass_on(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden


@contextmanager
def _replaced(layer: nn.Module, forward: Any) -> Iterator[None]:
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
