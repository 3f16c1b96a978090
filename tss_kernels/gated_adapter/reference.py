"""The gated bottleneck adapter in plain PyTorch: the specification, straight from the definition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


def compose(
    x: torch.Tensor,
    down: Callable[[torch.Tensor], torch.Tensor],
    up: Callable[[torch.Tensor], torch.Tensor],
    activation: str,
) -> torch.Tensor:
    """x + up(activation(down(x)))."""
    return x + up(ACTIVATIONS[activation](down(x)))
