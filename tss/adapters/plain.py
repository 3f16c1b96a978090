"""Plain adapters of the same shapes: one set of trained weights that every task moves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tss.adapters.bank import Bank, Tensors
from tss.adapters.config import AdapterConfig
from tss.adapters.float32 import Float32Module
from tss.seeding import tensor_stream

WEIGHT_STD = 0.02
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class PlainAdapter(Float32Module):
    """x + up(activation(down(x))) with trained float32 weights, whatever the model's dtype.

    down starts as N(0, 0.02²) and up as zero, so that the adapter starts as the identity.
    """

    def __init__(self, width: int, bottleneck: int, activation: str, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.down = nn.Linear(width, bottleneck, device="cpu", dtype=torch.float32)
            self.up = nn.Linear(bottleneck, width, device="cpu", dtype=torch.float32)
        self.activation = ACTIVATIONS[activation]()
        with torch.no_grad():
            self.down.weight.normal_(0.0, WEIGHT_STD, generator=generator)
            for tensor in (self.down.bias, self.up.weight, self.up.bias):
                tensor.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., width) -> the same shape and dtype."""
        return x + self.up(self.activation(self.down(x.float()))).to(x.dtype)


class PlainBank(Bank):
    """A plain adapter for all tasks: old or new, they run on the weights as they are now.

    Args:
        site, width: name and width of the output that it adapts.
        config: shape and seed.
        dtype: of the site's output; the weights are float32.
    """

    gated = False

    def __init__(self, site: str, width: int, config: AdapterConfig, dtype: torch.dtype) -> None:
        generator = tensor_stream(config.seed, "adapter", site)
        super().__init__(site, width, PlainAdapter(width, config.bottleneck, config.activation, generator))

    def prepare(self, task: str | None) -> None:
        """Nothing: there is one set of weights."""

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        self.learning = task

    def trained(self) -> dict[str, nn.Parameter]:
        layers = self.layers.items()
        return {f"weights.{name}.{part}": p for name, layer in layers for part, p in layer.named_parameters()}

    def seal(self, task: str) -> None:
        self.learning = None

    def sealed(self, task: str) -> Tensors:
        return {}

    def load_sealed(self, task: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing: only heads are a task's own."""

    def shared(self) -> Tensors:
        return {name: parameter.detach() for name, parameter in self.trained().items()}

    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.load(tensors, self.trained())

    def frozen(self) -> Tensors:
        return {}

    def gate_bytes(self) -> int:
        return 0
