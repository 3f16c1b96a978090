"""Layers before the first adapter: they are frozen, so an example's hidden states there are the same in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.task_call import calling


class _Reached(Exception):
    pass


class FrozenPrefix:
    """Layers of the stack that reads the inputs, up to the adapter of the first layer that has one.

    Args:
        stack: the encoder, or the base model of a model that has one stack.
        layers: the stack's layers.
        first: index of the first layer with an adapter.
        site: the module in that layer whose output is adapted and is also the layer's output.
        adapter: the site's adapter.
    """

    def __init__(
        self, stack: nn.Module, layers: nn.ModuleList, first: int, site: nn.Module, adapter: SiteAdapter
    ) -> None:
        self.stack, self.layers, self.first, self.site, self.adapter = stack, layers, first, site, adapter

    @torch.no_grad()
    def compute(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Return the hidden states (B, L, H) of a batch just before the first adapter.

        Returns None if the adapted layer computes more after its site, so that these states are not its whole output.
        """
        seen: list[Any] = []

        def note(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output)
            if module is not self.site:
                raise _Reached  # the rest of the stack is not needed

        with calling(None), ExitStack() as stack:
            for module in (self.site, self.layers[self.first]):
                stack.callback(module.register_forward_hook(note).remove)
            with suppress(_Reached):
                self.stack(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        ends = len(seen) == 2 and all(isinstance(output, torch.Tensor) for output in seen)
        return seen[0] if ends and torch.equal(*seen) else None

    @contextmanager
    def reuse(self, states: torch.Tensor) -> Iterator[None]:
        """Run the batch from the first adapter within a `with` block; `states` is what `compute` gave for it."""

        def adapt(*args: Any, **kwargs: Any) -> torch.Tensor:
            adapted = self.adapter.hook(self.site, None, states)
            return states if adapted is None else adapted

        with ExitStack() as stack:
            for layer in self.layers[: self.first]:
                stack.enter_context(_replaced(layer, _pass_on))
            stack.enter_context(_replaced(self.layers[self.first], adapt))
            yield


def find_prefix(model: Any, adapters: Mapping[str, SiteAdapter]) -> FrozenPrefix | None:
    """Return the layers before the first adapter that a batch reaches.

    Returns None if they cannot be skipped: the stack that reads the inputs has no adapter, has one outside its layers,
    or several in the first adapted layer; an adapter reads more than the output that it changes; or there is dropout.

    Args:
        model: the backbone.
        adapters: name of the site in the backbone -> adapter.
    """
    settings = model.config.to_dict()
    if any(value for key, value in settings.items() if "drop" in key and key != "classifier_dropout"):
        return None
    if not all(adapter.reads_output for adapter in adapters.values()):
        return None
    adapted = {model.get_submodule(name): adapter for name, adapter in adapters.items()}
    stack: nn.Module = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    layers = next((module for module in stack.modules() if isinstance(module, nn.ModuleList)), nn.ModuleList())
    inside = [[module for module in layer.modules() if module in adapted] for layer in layers]
    everywhere = [module for module in stack.modules() if module in adapted]
    first = next((i for i, sites in enumerate(inside) if sites), None)
    if first is None or len(inside[first]) != 1 or len(everywhere) != sum(map(len, inside)):
        return None
    site = inside[first][0]
    return FrozenPrefix(stack, layers, first, site, adapted[site])


@contextmanager
def reuse_states(prefix: FrozenPrefix | None, states: torch.Tensor | None) -> Iterator[None]:
    """Apply `prefix.reuse(states)`; do nothing if either is None."""
    if states is None or prefix is None:
        yield
        return
    with prefix.reuse(states):
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
