"""Plain adapters of the same shapes: one set of trained weights that every task moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tss.adapters.bank import Bank
from tss.adapters.config import TssOptions
from tss.adapters.streams import stream
from tss_kernels import SoftMaskedAdamW
from tss_kernels.gated_adapter.reference import adapter

WEIGHT_STD = 0.02


class PlainAdapter(nn.Module):
    """x + up(activation(down(x))) with trained weights; up starts at zero, so that it starts as the identity.

    Weights are float32 whatever the model's dtype, as a trained parameter should be.
    """

    def __init__(self, width: int, bottleneck: int, activation: str, *, device: Any = None) -> None:
        super().__init__()
        self.activation = activation
        self.down = nn.Linear(width, bottleneck, device=device, dtype=torch.float32)
        self.up = nn.Linear(bottleneck, width, device=device, dtype=torch.float32)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """down from N(0, 0.02²), all else zero."""
        drawn = torch.empty(self.down.weight.shape).normal_(0.0, WEIGHT_STD, generator=generator)
        self.down.weight.copy_(drawn)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            tensor.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., width) -> the same shape and dtype."""
        if torch.is_autocast_enabled(x.device.type):
            return adapter(x, self.down, self.up, self.activation).to(x.dtype)
        return adapter(x.float(), self.down, self.up, self.activation).to(x.dtype)


class PlainBank(Bank):
    """The plain layers of all sites; every task, old or new, runs on the weights as they are now."""

    gated = False

    def make_adapter(self, site: str, width: int, device: Any, dtype: torch.dtype) -> nn.Module:
        adapter = PlainAdapter(width, self.config.bottleneck, self.config.activation, device=device)
        adapter.reset_parameters(stream(self.config.seed, "adapter", site))
        return adapter.requires_grad_(False)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{part}": p for name, layer in self.layers.items() for part, p in layer.named_parameters()}

    def start(self, task: str, first: bool, options: TssOptions) -> None:
        """Nothing: a task goes on from where the last one left the weights."""

    def optimizer(self, groups: list[dict[str, Any]], options: TssOptions, **settings: Any) -> SoftMaskedAdamW:
        return SoftMaskedAdamW(groups, weight_decay=0.0, **settings)

    def measure(self, losses: Any, options: TssOptions) -> None:
        raise ValueError("seal_task: plain adapters keep no importance; call it without data")

    def seal(self) -> dict[str, torch.Tensor]:
        return {}

    def activate(self, gates: Mapping[str, torch.Tensor] | None) -> None:
        """Nothing: there is one set of weights."""

    def live_gates(self) -> dict[str, torch.Tensor]:
        return {}

    def packed(self) -> dict[str, torch.Tensor]:
        return {}

    def density(self) -> dict[str, float]:
        return {}

    def shared_state(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.trainable().items()}

    def load_shared_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.load_trained(state)

    def frozen(self) -> dict[str, torch.Tensor]:
        return {}
