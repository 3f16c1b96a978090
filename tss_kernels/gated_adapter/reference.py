"""The gated adapter in plain PyTorch: the specification that every backend is held to."""

from __future__ import annotations

from collections.abc import Callable

import torch

Map = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[str, Map] = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


def compose(x: torch.Tensor, down: Map, up: Map, activation: str) -> torch.Tensor:
    """x + up(activation(down(x))): x (..., d), down to (..., bottleneck), up back to (..., d)."""
    return x + up(ACTIVATIONS[activation](down(x)))
