"""Layers: the gated linear map and the adapter made of two."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tss_kernels.checks import check_choice, check_packed, check_threshold
from tss_kernels.gated_adapter.api import gated_adapter, gated_adapter_from_packed
from tss_kernels.gated_adapter.reference import ACTIVATIONS
from tss_kernels.gated_linear.api import gated_linear_of
from tss_kernels.gated_linear.composed import KeptProduct
from tss_kernels.gates.api import pack_gates, packed_linear_of, unpack_gates
from tss_kernels.gates.scores import Scores
from tss_kernels.watched import Frozen

WEIGHT_INITS = ("normal", "signed_constant")
WEIGHT_STD = 0.02


class GatedAdapterLinear(nn.Module):
    """Drop-in for torch.nn.Linear whose frozen weight is switched on and off by trained scores.

    y = x @ where(scores >= threshold, weight, 0).T + bias. `weight` (out, in) and `bias` (out,) are frozen parameters,
    `scores` (out, in) is a float32 parameter, the only trained one; `importance` a float32 buffer (out, in) or None.
    `mask_gradient`: True applies (1 - importance) to the gradient of the scores; False leaves it plain. Scores and
    importance stay float32 under `.half()` and `.to(dtype)`. Raises ValueError for an unknown weight_init
    or a threshold of NaN.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scores: Scores
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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("weight_init", weight_init, WEIGHT_INITS)
        self.in_features = in_features
        self.out_features = out_features
        check_threshold(threshold)
        if math.isnan(threshold):
            raise ValueError("threshold must be a number but is nan: no gate would ever be on")
        self.threshold = float(threshold)
        self.weight_init = weight_init
        self.mask_gradient = True
        self.weight = Frozen(torch.empty((out_features, in_features), device=device, dtype=dtype))
        constant = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if constant is None else nn.Parameter(constant, requires_grad=False))
        self.scores = Scores(torch.empty((out_features, in_features), device=device, dtype=torch.float32))
        self.register_buffer("importance", None)
        self.register_buffer("packed", None, persistent=False)
        self.product = KeptProduct()
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, threshold: float = 0.0) -> GatedAdapterLinear:
        """A gated layer on a linear layer's own weight and bias, frozen here and shared with it; new scores."""
        weight, bias = linear.weight, linear.bias
        layer = cls(
            linear.in_features, linear.out_features, bias is not None, threshold=threshold, device="meta",
            dtype=weight.dtype,
        )  # fmt: skip
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        layer.scores = Scores(torch.empty(weight.shape, device=weight.device, dtype=torch.float32))
        layer.reset_scores()
        return layer

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws weight and scores anew and sets the bias to 0; with a generator, the same values on every device.

        weight: N(0, 0.02^2), or for "signed_constant" the sign of that draw times sqrt(2 / in).
        """
        draw = self._draw(torch.randn, generator)
        if draw is not None:
            constant = math.sqrt(2 / max(self.in_features, 1))
            value = WEIGHT_STD * draw if self.weight_init == "normal" else torch.where(draw < 0, -constant, constant)
            self.weight.data.copy_(value)
        if self.bias is not None:
            self.bias.data.zero_()
        self.reset_scores(generator)

    def reset_scores(self, generator: torch.Generator | None = None) -> None:
        """Draws the scores anew, kaiming_uniform(a = sqrt 5): U(-1 / sqrt(in), 1 / sqrt(in)), half the gates on."""
        draw = self._draw(torch.rand, generator)
        if draw is not None:
            self.scores.data.copy_((2 * draw - 1) / math.sqrt(max(self.in_features, 1)))

    def _draw(self, function: Callable[..., torch.Tensor], generator: torch.Generator | None) -> torch.Tensor | None:
        """Random float32 (out, in) from the generator's device or the layer's; None on the meta device."""
        if self.scores.is_meta:
            return None
        device = self.scores.device if generator is None else generator.device
        return function(self.scores.shape, generator=generator, device=device, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out), by the live scores or, after set_packed, by the gates given there."""
        weight, scores, bias, packed, importance = self._tensors()
        if packed is not None:
            return packed_linear_of(x, weight, packed, bias, self.product)
        return gated_linear_of(
            x, weight, scores, bias, self.threshold, importance if self.mask_gradient else None, self.product
        )

    def _tensors(self) -> tuple[Any, ...]:
        """weight, scores, bias, packed and importance: where a module keeps them unless somebody replaced one."""
        parameters, buffers = self._parameters, self._buffers
        try:
            return (
                parameters["weight"], parameters["scores"], parameters["bias"], buffers["packed"], buffers["importance"]
            )  # fmt: skip
        except KeyError:
            return self.weight, self.scores, self.bias, self.packed, self.importance

    def active_importance(self) -> torch.Tensor | None:
        """The importance that masks the gradient in the backward pass, None if nothing does."""
        return self.importance if self.mask_gradient else None

    def set_packed(self, packed: torch.Tensor | None) -> None:
        """Fixes the gates to packed uint8 (out, ceil(in / 8)), no gradient for the scores; None: live scores again.

        Not part of state_dict; moves with the layer. Raises TypeError, ValueError.
        """
        if packed is not None:
            check_packed(packed, self.weight)
        self.packed = packed

    def gate(self) -> torch.Tensor:
        """The gates that the forward pass uses, bool (out, in)."""
        if self.packed is not None:
            return unpack_gates(self.packed, self.in_features)
        return self.scores.detach() >= self.threshold

    def density(self) -> float:
        """The share of gates that are on, in [0, 1]."""
        return self.gate().float().mean().item()

    def fixed_or_packed(self) -> torch.Tensor:
        """The gates that the forward pass uses at one bit each, uint8 (out, ceil(in / 8)); those set, not a copy."""
        return self.packed if self.packed is not None else pack_gates(self.scores, self.threshold)

    def pack(self) -> torch.Tensor:
        """The gates that the forward pass uses at one bit each, a new uint8 (out, ceil(in / 8))."""
        return self.packed.clone() if self.packed is not None else pack_gates(self.scores, self.threshold)

    def extra_repr(self) -> str:
        """Sizes and options, as torch.nn.Linear prints them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"threshold={self.threshold}"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GatedAdapterLinear:
        kept = (self.scores, self.scores.grad, self.importance)

        def convert(tensor: torch.Tensor) -> torch.Tensor:
            converted = fn(tensor)
            if converted.dtype != tensor.dtype and any(tensor is one for one in kept):
                return tensor.to(converted.device)
            return converted

        return super()._apply(convert, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Importance is None before anything was learned: it comes and goes with the state that is loaded.
        stored = prefix + "importance" in state_dict
        if stored != (self.importance is not None):
            self.importance = torch.zeros_like(self.scores, requires_grad=False) if stored else None
        super()._load_from_state_dict(state_dict, prefix, *args)


class GatedAdapter(nn.Module):
    """A bottleneck adapter of two gated layers with its residual: x + up(activation(down(x))), x (..., hidden_size).

    activation: "relu", "gelu", "silu" or "tanh". Takes any floating x: the frozen weights are cast to its dtype, or
    to autocast's. Further arguments as GatedAdapterLinear's. Raises ValueError.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck: int,
        activation: str = "relu",
        *,
        threshold: float = 0.0,
        weight_init: str = "normal",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, tuple(ACTIVATIONS))
        self.activation = activation
        options: dict[str, Any] = {
            "threshold": threshold, "weight_init": weight_init, "device": device, "dtype": dtype
        }  # fmt: skip
        self.down = GatedAdapterLinear(hidden_size, bottleneck, **options)
        self.up = GatedAdapterLinear(bottleneck, hidden_size, **options)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws both layers anew, down first."""
        self.down.reset_parameters(generator)
        self.up.reset_parameters(generator)

    def reset_scores(self, generator: torch.Generator | None = None) -> None:
        """Draws the scores of both layers anew, down first."""
        self.down.reset_scores(generator)
        self.up.reset_scores(generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., hidden_size) to the same shape and dtype."""
        down, up = self.down, self.up
        (down_weight, down_bias), (up_weight, up_bias) = _frozen(down, x.dtype), _frozen(up, x.dtype)
        options: dict[str, Any] = {
            "activation": self.activation,
            "down_importance": down.active_importance(),
            "up_importance": up.active_importance(),
            "kept": (down.product, up.product),
        }
        if down.packed is None and up.packed is None and down.threshold == up.threshold:
            return gated_adapter(
                x, down_weight, down.scores, up_weight, up.scores, down_bias, up_bias, threshold=down.threshold,
                **options,
            )  # fmt: skip
        return gated_adapter_from_packed(
            x, down_weight, down.fixed_or_packed(), up_weight, up.fixed_or_packed(), down_bias, up_bias,
            down_scores=None if down.packed is not None else down.scores,
            up_scores=None if up.packed is not None else up.scores, **options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The activation; the layers print themselves."""
        return f"activation={self.activation!r}"


def _frozen(layer: GatedAdapterLinear, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias in this dtype; themselves if they have it."""
    return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
