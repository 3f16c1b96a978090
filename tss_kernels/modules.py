"""Layers: a gated linear map that drops in for `torch.nn.Linear`, and the bottleneck adapter made of two."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tss_kernels.gated_adapter import gated_adapter
from tss_kernels.gated_adapter.api import check_activation
from tss_kernels.gated_adapter.reference import compose
from tss_kernels.gated_linear import gated_linear
from tss_kernels.gates import pack_gates, packed_linear, unpack_gates

WEIGHT_INITS = ("normal", "signed_constant")
WEIGHT_STD = 0.02


class GatedAdapterLinear(nn.Module):
    """y = x (W * 1[s >= threshold])ᵀ + b with frozen random W and trained scores s; drop-in for `torch.nn.Linear`.

    Args:
        in_features, out_features: sizes of the last dimension of x and y.
        bias: whether there is a (frozen, zero) bias.
        threshold: a gate is on where its score is at least this.
        weight_init: "normal", N(0, 0.02²), or "signed_constant", sign(W) * sqrt(2 / in).
        device, dtype: of weight and bias; scores are always float32.

    Attributes:
        weight: (out, in), frozen. bias: (out,), frozen, or None.
        scores: (out, in), float32, the only trained parameter.
        importance: (out, in), float32 in [0, 1], or None: how much earlier tasks rely on each entry.
        mask_gradient: True applies (1 - importance) in the backward pass, False leaves the gradient plain.
        packed: uint8 gates of a sealed task that run instead of the scores, or None.

    Raises:
        ValueError: an unknown weight_init.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scores: nn.Parameter
    importance: torch.Tensor | None
    packed: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        threshold: float = 0.0,
        weight_init: str = "normal",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if weight_init not in WEIGHT_INITS:
            raise ValueError(
                f"GatedAdapterLinear: weight_init must be one of {', '.join(WEIGHT_INITS)}, got {weight_init!r}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.threshold, self.weight_init, self.mask_gradient = threshold, weight_init, True
        shape = (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype), requires_grad=False) if bias else None
        )
        self.scores = nn.Parameter(torch.empty(shape, device=device, dtype=torch.float32))
        self.register_buffer("importance", None)
        self.register_buffer("packed", None, persistent=False)
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, threshold: float = 0.0) -> GatedAdapterLinear:
        """A gated layer that keeps the linear's weight and bias, frozen, with fresh scores."""
        weight = linear.weight
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            threshold=threshold,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw W and the scores anew, and zero the bias; the values of a seeded generator do not depend on the device."""
        drawn = torch.empty(self.weight.shape, dtype=torch.float32, device=_drawing_device(self.weight, generator))
        drawn.normal_(0.0, WEIGHT_STD, generator=generator)
        if self.weight_init == "signed_constant":
            drawn = drawn.sign() * math.sqrt(2 / max(1, self.in_features))
        self.weight.copy_(drawn)
        if self.bias is not None:
            self.bias.zero_()
        self.reset_scores(generator)

    @torch.no_grad()
    def reset_scores(self, generator: torch.Generator | None = None) -> None:
        """Draw the scores from U(-1/sqrt(in), 1/sqrt(in)), that is kaiming_uniform(a = sqrt 5)."""
        bound = 1 / math.sqrt(max(1, self.in_features))
        drawn = torch.empty(self.scores.shape, device=_drawing_device(self.scores, generator))
        self.scores.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def set_packed(self, packed: torch.Tensor | None) -> None:
        """Run from these gates, uint8 (out, ceil(in / 8)), instead of the scores; None returns to the scores."""
        self.packed = None if packed is None else packed.to(self.weight.device)

    def gate(self) -> torch.Tensor:
        """The gates that run now, bool (out, in)."""
        return unpack_gates(self.pack(), self.in_features)

    def density(self) -> float:
        """The share of gates that are on, 0 to 1."""
        return float(self.gate().float().mean()) if self.scores.numel() else 0.0

    def pack(self) -> torch.Tensor:
        """The gates that run now as bits, uint8 (out, ceil(in / 8))."""
        return pack_gates(self.scores.detach(), self.threshold) if self.packed is None else self.packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)."""
        if self.packed is not None:
            return packed_linear(x, self.weight, self.packed, self.bias)
        return gated_linear(
            x, self.weight, self.scores, self.bias, threshold=self.threshold, importance=self._soft_mask()
        )

    def _soft_mask(self) -> torch.Tensor | None:
        return self.importance if self.mask_gradient else None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GatedAdapterLinear:
        """As `nn.Module._apply`, but scores and importance stay float32 under `.half()` and `.to(dtype)`."""

        def keep_float32(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            if (tensor is self.scores or tensor is self.importance) and moved.dtype != torch.float32:
                # Only the device of the conversion counts; going through a narrower dtype would round.
                return tensor.to(moved.device) if not moved.is_meta else torch.empty_like(tensor, device="meta")
            return moved

        # nn.Module._apply hands over parameters themselves and the gradients of parameters; gradients follow scores.
        grad, self.scores.grad = self.scores.grad, None
        super()._apply(keep_float32, recurse)
        if grad is not None:
            self.scores.grad = grad.to(self.scores.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # The importance buffer is None until a task was sealed: take it on, or let it go, with the loaded state.
        stored = state_dict.get(prefix + "importance")
        if stored is not None and self.importance is None:
            self.importance = torch.zeros_like(self.scores, requires_grad=False)
        elif stored is None and self.importance is not None:
            self.importance = None
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"threshold={self.threshold}, running={'packed gates' if self.packed is not None else 'scores'}"
        )


class GatedAdapter(nn.Module):
    """x + up(activation(down(x))) with two `GatedAdapterLinear`s, hidden_size -> bottleneck -> hidden_size.

    Args:
        hidden_size: last dimension of x.
        bottleneck: width in between.
        activation: relu, gelu, silu or tanh.
        threshold, weight_init, device, dtype: as for `GatedAdapterLinear`.

    Raises:
        ValueError: an unknown activation or weight_init.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck: int,
        activation: str = "relu",
        *,
        threshold: float = 0.0,
        weight_init: str = "normal",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_activation("GatedAdapter", activation)
        self.activation = activation
        settings: dict[str, Any] = {
            "threshold": threshold,
            "weight_init": weight_init,
            "device": device,
            "dtype": dtype,
        }
        self.down = GatedAdapterLinear(hidden_size, bottleneck, **settings)
        self.up = GatedAdapterLinear(bottleneck, hidden_size, **settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., hidden_size) -> the same shape and dtype."""
        down, up = self.down, self.up
        alike = down.threshold == up.threshold
        if down.packed is not None or up.packed is not None or not alike:
            return compose(x, down, up, self.activation).to(x.dtype)
        return gated_adapter(
            x,
            down.weight,
            down.scores,
            up.weight,
            up.scores,
            down.bias,
            up.bias,
            activation=self.activation,
            threshold=down.threshold,
            down_importance=down._soft_mask(),
            up_importance=up._soft_mask(),
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


def _drawing_device(tensor: torch.Tensor, generator: torch.Generator | None) -> torch.device:
    return tensor.device if generator is None else generator.device
