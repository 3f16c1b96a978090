"""Layers: the gated linear map, and the adapter made of two of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as _hooks

from tss_kernels.gated_adapter.api import adapter_product
from tss_kernels.gated_adapter.reference import ACTIVATIONS
from tss_kernels.gated_linear.api import GatedMap, gated_product
from tss_kernels.gates.api import pack_gates, unpack_gates
from tss_kernels.multi_task.api import multi_task_adapter
from tss_kernels.validation import check_choice, check_dtype, check_packed, check_size, check_threshold

WEIGHT_INITS = ("normal", "signed_constant")
WEIGHT_STD = 0.02
REGISTERED = {"weight", "bias", "scores"}


class GatedAdapterLinear(nn.Module):
    """Drop-in for torch.nn.Linear whose frozen weight is switched on and off by trained scores.

    The gates apply where the layer is called. Code that multiplies by `layer.weight` itself runs without them:
    torch.nn.MultiheadAttention does (out_proj), and TransformerEncoderLayer in evaluation mode (linear1, linear2)
    unless torch.backends.mha.set_fastpath_enabled(False).

    y = x @ where(scores >= threshold, weight, 0).T + bias. `weight` (out, in) and `bias` (out,) are frozen parameters,
    `scores` (out, in) is a float32 parameter, the only trained one; `importance` is a float32 buffer (out, in) or None.
    `mask_gradient`: True multiplies the gradient of the scores by (1 - importance); False does not. Scores and
    importance stay float32 under `.half()` and `.to(dtype)`.

    weight_init: "signed_constant" (the default), random signs times sqrt(2 / in), gives outputs as large as those of a
    layer that trains its weights, so that choosing among weights can replace torch.nn.Linear; "normal", N(0, 0.02^2),
    gives small outputs, for a branch beside a residual, as in GatedAdapter. Raises ValueError for an unknown
    weight_init, a size below 0 or a threshold of NaN, and TypeError for arguments of another type.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scores: nn.Parameter
    importance: torch.Tensor | None
    packed: torch.Tensor | None
    gates_of_call: Callable[[torch.Tensor], torch.Tensor | None] | None = None
    """For subclasses whose gates depend on the call: input x -> packed gates, or None for the layer's own."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        threshold: float = 0.0,
        weight_init: str = "signed_constant",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("weight_init", weight_init, WEIGHT_INITS)
        check_dtype(dtype)
        self.in_features = in_features = check_size("in_features", in_features)
        self.out_features = out_features = check_size("out_features", out_features)
        check_threshold(threshold)
        if math.isnan(threshold):
            raise ValueError("threshold must be a number but is nan: no gate would ever be on")
        self.threshold = float(threshold)
        self.weight_init = weight_init
        self.mask_gradient = True
        weight = torch.empty((out_features, in_features), device=device, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        constant = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if constant is None else nn.Parameter(constant, requires_grad=False))
        self.scores = nn.Parameter(torch.empty((out_features, in_features), device=device, dtype=torch.float32))
        self.register_buffer("importance", None)
        self.register_buffer("packed", None, persistent=False)
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, threshold: float = 0.0) -> GatedAdapterLinear:
        """Create a gated layer that shares a linear layer's weight and bias, frozen here, with new scores.

        Raises TypeError if `linear` is not a torch.nn.Linear with weights of a floating dtype.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"from_linear takes a torch.nn.Linear but got a {type(linear).__name__}: {linear!r}")
        weight, bias = linear.weight, linear.bias
        layer = cls(
            linear.in_features, linear.out_features, bias is not None, threshold=threshold, device="meta",
            dtype=weight.dtype,
        )  # fmt: skip
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        layer.scores = nn.Parameter(torch.empty(weight.shape, device=weight.device, dtype=torch.float32))
        layer.reset_scores()
        return layer

    def reset_parameters(self, generator: torch.Generator | None = None, *, scale: float = 1.0) -> None:
        """Redraw weight and scores and set the bias to 0; with a generator, to the same values on every device.

        weight: N(0, 0.02^2), or for "signed_constant" its sign times sqrt(2 / in); times scale, in float32.
        """
        draw = self._draw(torch.randn, generator)
        if draw is not None:
            constant = torch.full_like(draw, math.sqrt(2 / max(self.in_features, 1)))
            value = WEIGHT_STD * draw if self.weight_init == "normal" else torch.where(draw < 0, -constant, constant)
            self.weight.data.copy_(value if scale == 1.0 else value * scale)
        if self.bias is not None:
            self.bias.data.zero_()
        self.reset_scores(generator)

    def reset_scores(self, generator: torch.Generator | None = None) -> None:
        """Redraw the scores, kaiming_uniform(a = sqrt 5): U(-1 / sqrt(in), 1 / sqrt(in)), half of them above 0."""
        draw = self._draw(torch.rand, generator)
        if draw is not None:
            self.scores.data.copy_((2 * draw - 1) / math.sqrt(max(self.in_features, 1)))

    def _draw(self, function: Callable[..., torch.Tensor], generator: torch.Generator | None) -> torch.Tensor | None:
        """Draw float32 (out, in) on the generator's device, or else the layer's; None on the meta device."""
        if self.scores.is_meta:
            return None
        device = self.scores.device if generator is None else generator.device
        return function(self.scores.shape, generator=generator, device=device, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., in) to (..., out), by the scores or, after set_packed, by the packed gates set there."""
        # Reading each of these as an attribute of the module would cost a Python call.
        parameters: dict[str, Any] = self._parameters
        buffers: dict[str, Any] = self._buffers
        try:
            packed, scores, importance = buffers["packed"], parameters["scores"], buffers["importance"]
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # pruning and parametrizations store them elsewhere
            packed, scores, weight, bias, importance = self.packed, self.scores, self.weight, self.bias, self.importance
        if self.gates_of_call is not None and (chosen := self.gates_of_call(x)) is not None:
            packed = chosen
        if packed is not None:
            return gated_product(x, (weight, packed, bias, self.threshold, None, True))
        masking = importance if self.mask_gradient else None
        return gated_product(x, (weight, scores, bias, self.threshold, masking, False))

    def set_packed(self, packed: torch.Tensor | None) -> None:
        """Fix the gates to packed uint8 (out, ceil(in / 8)), without gradient for the scores; None uses scores again.

        Not part of state_dict; moves with the layer. Raises TypeError, ValueError.
        """
        if packed is not None:
            check_packed(packed, self.weight)
        self.packed = packed

    def gate(self) -> torch.Tensor:
        """Return the gates that the forward pass uses, bool (out, in)."""
        if self.packed is not None:
            return unpack_gates(self.packed, self.in_features)
        return self.scores.detach() >= self.threshold

    def density(self) -> float:
        """Return the fraction of gates that are on, in [0, 1]."""
        return self.gate().float().mean().item()

    def pack(self) -> torch.Tensor:
        """Return the gates that the forward pass uses, packed in a new tensor: uint8 (out, ceil(in / 8))."""
        return self.packed.clone() if self.packed is not None else pack_gates(self.scores, self.threshold)

    def extra_repr(self) -> str:
        """Return sizes and options, in the format of torch.nn.Linear."""
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
        # Importance is None before any task was learned: create it to match the loaded state dict, or remove it. A dict
        # that has only a part of this layer, or nothing of it, does not say that nothing was learned.
        stored = prefix + "importance" in state_dict
        if stored and self.importance is None:
            self.importance = torch.zeros_like(self.scores, requires_grad=False)
        elif not stored and self._is_whole(state_dict, prefix):
            self.importance = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _is_whole(self, state_dict: dict[str, Any], prefix: str) -> bool:
        """Return whether a state dict has all parameters of this layer, wherever parametrizations moved them."""
        own = [name for name, parameter in self._parameters.items() if parameter is not None]
        if hasattr(self, "parametrizations"):
            own += [f"parametrizations.{name}.original" for name in self.parametrizations]  # type: ignore[union-attr]
        return all(prefix + name in state_dict for name in own)


class GatedAdapter(nn.Module):
    """A bottleneck adapter of two gated layers with its residual: x + up(activation(down(x))), x (..., hidden_size).

    activation: "relu", "gelu", "silu" or "tanh". x may have any floating dtype: the frozen weights are cast to it, or
    to autocast's. weight_init is "normal" here, N(0, 0.02^2): beside a residual, small weights leave the hidden state
    of the model nearly unchanged, whereas "signed_constant" would change it by more than half. Other arguments as for
    GatedAdapterLinear. `run_adapter` describes how the layers run. Warns about a threshold with which no score gets a
    gradient. Raises ValueError, TypeError.
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
        hidden_size, bottleneck = check_size("hidden_size", hidden_size), check_size("bottleneck", bottleneck)
        self.activation = activation
        options: dict[str, Any] = {
            "threshold": threshold, "weight_init": weight_init, "device": device, "dtype": dtype
        }  # fmt: skip
        self.down = GatedAdapterLinear(hidden_size, bottleneck, **options)
        self.up = GatedAdapterLinear(bottleneck, hidden_size, **options)
        if message := unreached_threshold(threshold, hidden_size, activation):
            warnings.warn(f"GatedAdapter: {message}, or set other scores", stacklevel=2)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Redraw both layers, down first."""
        self.down.reset_parameters(generator)
        self.up.reset_parameters(generator)

    def reset_scores(self, generator: torch.Generator | None = None) -> None:
        """Redraw the scores of both layers, down first."""
        self.down.reset_scores(generator)
        self.up.reset_scores(generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., hidden_size) to the same shape and dtype."""
        modules: dict[str, Any] = self._modules
        return run_adapter(x, modules["down"], modules["up"], self.activation)

    def extra_repr(self) -> str:
        """Return the activation; the layers print themselves."""
        return f"activation={self.activation!r}"


def unreached_threshold(threshold: float, hidden_size: int, activation: str) -> str | None:
    """Return what is wrong with an adapter's threshold, if no score can ever get a gradient.

    That is so where no gate of the first layer is on and the activation has no gradient at 0.
    """
    highest = 1 / math.sqrt(max(hidden_size, 1))
    if activation != "relu" or threshold <= highest:
        return None
    return (
        f"threshold {threshold} is above all first scores of the down layer, which are at most {highest:.3g}: none of "
        "its gates is on, and no score of the adapter gets a gradient; use a lower threshold"
    )


def run_adapter(x: torch.Tensor, down: Any, up: Any, activation: str) -> torch.Tensor:
    """Compute x + up(activation(down(x))) with two GatedAdapterLinear: one operation if calling them does no more.

    x (..., d), any floating dtype; the frozen weights are cast to it, or to autocast's. Layers that have hooks or
    another forward are called one by one, in the dtype of their weights. Returns x's shape and dtype.
    """
    maps = _plain_maps(x, (down, up))
    if maps is None:
        hidden = ACTIVATIONS[activation](down(_for_layer(down, x)))
        return x + up(_for_layer(up, hidden)).to(x.dtype)
    if maps[0][0].dtype is not x.dtype:
        maps = [_cast(one, x.dtype) for one in maps]
    return adapter_product(x, maps[0], maps[1], activation)


def run_multi_task_adapter(
    x: torch.Tensor,
    down: Any,
    up: Any,
    activation: str,
    down_bank: torch.Tensor,
    up_bank: torch.Tensor,
    task_ids: torch.Tensor,
) -> torch.Tensor | None:
    """Run `run_adapter` for rows of many tasks: x[b] with the gates of task_ids[b] instead of the layers' own.

    x, weights and the returned value are as in `run_adapter`, banks and ids as in multi_task_adapter. Returns None if
    the layers must be called one by one, because they have hooks or another forward: then run task by task.
    """
    maps = _plain_maps(x, (down, up))
    if maps is None:
        return None
    if maps[0][0].dtype is not x.dtype:
        maps = [_cast(one, x.dtype) for one in maps]
    (down_weight, _, down_bias, *_), (up_weight, _, up_bias, *_) = maps
    return multi_task_adapter(
        x, down_weight, down_bank, up_weight, up_bank, task_ids, down_bias, up_bias, activation=activation
    )


def _plain_maps(x: torch.Tensor, layers: Iterable[Any]) -> list[GatedMap] | None:
    """Return the layers' gated maps, or None if calling a layer would do more: hooks, another forward or class."""
    if (
        _hooks._global_forward_hooks
        or _hooks._global_forward_pre_hooks
        or _hooks._global_backward_hooks
        or _hooks._global_backward_pre_hooks
    ):
        return None
    maps: list[GatedMap] = []
    for layer in layers:
        own = layer.__dict__
        if (
            getattr(type(layer), "forward", None) is not GatedAdapterLinear.forward
            or "forward" in own  # accelerate's hooks replace it on the instance
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or layer._compiled_call_impl is not None
            or not own["_parameters"].keys() >= REGISTERED
        ):
            return None
        parameters, buffers = own["_parameters"], own["_buffers"]
        packed, importance = buffers["packed"], buffers["importance"] if layer.mask_gradient else None
        if layer.gates_of_call is not None and (chosen := layer.gates_of_call(x)) is not None:
            packed = chosen
        gates = parameters["scores"] if packed is None else packed
        weight, bias = parameters["weight"], parameters["bias"]
        maps.append((weight, gates, bias, layer.threshold, importance if packed is None else None, packed is not None))
    return maps


def _for_layer(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Cast x to the dtype of the layer's weight, if that is floating."""
    weight = getattr(layer, "weight", None)
    return x.to(weight.dtype) if isinstance(weight, torch.Tensor) and weight.is_floating_point() else x


def _cast(one: GatedMap, dtype: torch.dtype) -> GatedMap:
    """Cast the weight and bias of a gated map to this dtype."""
    weight, gates, bias, *rest = one
    return weight.to(dtype), gates, None if bias is None else bias.to(dtype), *rest  # type: ignore[return-value]
