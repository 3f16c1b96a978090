"""The adapter as PyTorch's own operations with both maps' W * g: in eager mode on the CPU, as `gated_linear.composed`.

Autograd keeps neither the argument of ReLU or tanh nor the branch before the residual: both are written over, which
saves the time of two passes and the memory of one tensor of x's size.
"""

from __future__ import annotations

import torch

from tss_kernels.gated_adapter.reference import ACTIVATIONS
from tss_kernels.gated_linear import composed
from tss_kernels.operators import rows_of, shaped_like
from tss_kernels.watched import plain

Pair = tuple[torch.Tensor | None, torch.Tensor | None]

# The activations of reference.FROM_RESULT.
_OVERWRITING = {"relu": torch.relu_, "tanh": torch.tanh_}


def composes(
    backend: str, x: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor], gates: Pair, importance: Pair
) -> bool:
    """Whether these arguments, which fit together, may go this way. Pairs: down, up; gates: scores or packed."""
    return (
        x.dtype == weights[0].dtype
        and all(
            composed.composes(backend, x, weight, own, mask)
            for weight, own, mask in zip(weights, gates, importance, strict=True)
        )
        and plain(x)  # another class may not let its tensors be written to
    )


def adapter(
    x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, down_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None, activation: str,
) -> torch.Tensor:  # fmt: skip
    """x + up(activation(down(x))) for x (..., d), by W * g of both maps, (bottleneck, d) and (d, bottleneck)."""
    rows = rows_of(x)
    activate = _OVERWRITING.get(activation) or ACTIVATIONS[activation]
    active = activate(composed.product(rows, down, down_bias))
    return shaped_like(composed.product(active, up, up_bias).add_(rows), x.shape[:-1])
