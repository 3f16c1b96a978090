"""The rivals: what a user would write in plain PyTorch without this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

Tensor = torch.Tensor


class _Threshold(torch.autograd.Function):
    """Gates of scores with a straight-through gradient and soft mask."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(keep)
        return (scores >= 0).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (keep,) = ctx.saved_tensors
        grad = grads[0].float()
        return grad if keep is None else grad * keep, None, None


def eager_linear(x: Tensor, weight: Tensor, scores: Tensor, keep: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Compute threshold, multiply, linear. keep (out, in): 1 - importance, precomputed."""
    return linear(x, weight * _Threshold.apply(scores, keep, weight.dtype), bias)


class _Materialised(torch.autograd.Function):
    """Write W * g once, then run the vendor's products, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scores: Tensor, keep: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        masked = torch.where(scores >= 0, weight, 0)
        ctx.save_for_backward(x, weight, masked, keep)
        return linear(x, masked, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, masked, keep = ctx.saved_tensors
        dy = grads[0]
        return dy @ masked, None, scores_grad(dy, x, weight, keep), None, None


def materialised_linear(
    x: Tensor, weight: Tensor, scores: Tensor, keep: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Write W * g once, then run F.linear, with gradients computed by hand."""
    return _Materialised.apply(x, weight, scores, keep, bias)


def scores_grad(dy: Tensor, x: Tensor, weight: Tensor, keep: Tensor | None) -> Tensor:
    """Compute the straight-through gradient as autograd would: product, times weight, then float32 and soft mask."""
    grad = ((dy.T @ x) * weight).float()
    return grad if keep is None else grad * keep


def adapter(product: Callable[..., Tensor], x: Tensor, t: dict[str, Any]) -> Tensor:
    """Compute x + up(relu(down(x))) with this gated product."""
    hidden = torch.relu(product(x, t["down_weight"], t["down_scores"], t["down_keep"], t["down_bias"]))
    return x + product(hidden, t["up_weight"], t["up_scores"], t["up_keep"], t["up_bias"])


def unpack(packed: Tensor, in_features: int, dtype: torch.dtype) -> Tensor:
    """Unpack bits to gates (out, in) in a dtype, by shifts."""
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :in_features].to(dtype)


def pack(scores: Tensor) -> Tensor:
    """Pack the gates of scores to bits, by shifts and a sum; in must be a multiple of 8."""
    shifts = torch.arange(8, device=scores.device, dtype=torch.uint8)
    bits = (scores >= 0).to(torch.uint8).view(scores.shape[0], -1, 8)
    return (bits << shifts).sum(-1, dtype=torch.uint8)


def normalise(raw: Tensor) -> Tensor:
    """Compute |tanh((a - mean) / (std + 1e-6))|."""
    return torch.tanh((raw - raw.mean()) / (raw.std(correction=0) + 1e-6)).abs()


def compiled(function: Callable[..., Any], tiny: bool) -> Callable[..., Any]:
    """Compile a function for each shape separately; in a tiny run the graph is captured but no code is generated."""
    torch._dynamo.reset()  # functions with the same code share its recompilation limit, beyond which they run eagerly
    return torch.compile(function, fullgraph=True, dynamic=False, backend="eager" if tiny else "inductor")
