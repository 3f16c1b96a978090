"""Plain adapter at one site: trained weights, one set for all tasks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

from tss.adapters.config import AdapterConfig
from tss.adapters.float32 import Float32Module
from tss.adapters.site_adapter import UngatedSite
from tss.adapters.task_store import TaskStore
from tss.seeding import tensor_stream
from tss_kernels.modules import ACTIVATIONS, WEIGHT_STD


class PlainSite(UngatedSite, Float32Module):
    """Plain adapter for all tasks, old or new, which run on the current values of the trained float32 weights.

    x + up(activation(down(x))); down is initialized from N(0, 0.02²) and up with zeros, so that it starts as the
    identity. A call that has weights of its own (down and its bias, up and its bias, for each site) runs on those.
    """

    down: nn.Linear
    up: nn.Linear

    def __init__(
        self, index: int, site: str, width: int, config: AdapterConfig, store: TaskStore, dtype: torch.dtype
    ) -> None:
        super().__init__(index, site, width, config, store)
        with torch.random.fork_rng(devices=[]):
            self.down = nn.Linear(width, config.bottleneck, device="cpu", dtype=torch.float32)
            self.up = nn.Linear(config.bottleneck, width, device="cpu", dtype=torch.float32)
        self.draw(tensor_stream(config.seed, "adapter", site))
        self.requires_grad_(False)

    @torch.no_grad()
    def draw(self, stream: torch.Generator) -> None:
        """Draw the initial weights, from a generator on the CPU."""
        self.down.weight.copy_(
            torch.empty(self.down.weight.shape, dtype=torch.float32).normal_(0.0, WEIGHT_STD, generator=stream)
        )
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            tensor.zero_()

    def adapt(self, hidden: torch.Tensor) -> torch.Tensor:
        activate, own = ACTIVATIONS[self.activation], self._own()
        if own is None:
            return hidden + self.up(activate(self.down(hidden.float()))).to(hidden.dtype)
        down, down_bias, up, up_bias = (tensor.to(hidden.device) for tensor in own)
        inner = activate(linear(hidden.float(), down, down_bias))
        return hidden + linear(inner, up, up_bias).to(hidden.dtype)

    def trained(self) -> dict[str, nn.Parameter]:
        layers = self.layers.items()
        return {f"weights.{name}.{part}": p for name, layer in layers for part, p in layer.named_parameters()}
