"""What the operations demand of their arguments; every message has the condition, both values and the remedy."""

from __future__ import annotations

import torch


def check_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """x (..., in), weight (out, in) and bias (out,) fit together and share one floating dtype and one device."""
    fits = (
        weight.dim() == 2
        and x.dim() >= 1
        and x.shape[-1] == weight.shape[1]
        and x.dtype == weight.dtype
        and x.dtype.is_floating_point
        and x.device == weight.device
        and (
            bias is None
            or (
                bias.dim() == 1
                and bias.shape[0] == weight.shape[0]
                and bias.dtype == x.dtype
                and bias.device == x.device
            )
        )
    )
    if not fits:
        _explain_linear(x, weight, bias)


def _explain_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    if weight.dim() != 2:
        raise ValueError(f"weight must be (out, in), two dimensions, but has shape {tuple(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x's last dimension must equal weight's in = {weight.shape[1]}, but x has shape {tuple(x.shape)} and "
            f"weight {tuple(weight.shape)}"
        )
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must have a floating dtype but has {x.dtype}: convert it, for example x.float()")
    if x.dtype != weight.dtype:
        raise TypeError(
            f"x and weight must have one dtype, but x has {x.dtype} and weight {weight.dtype}: convert one, for "
            f"example weight.to(x.dtype), or call under torch.autocast"
        )
    check_device("weight", weight, x)
    if bias is None:
        return
    if bias.dim() != 1 or bias.shape[0] != weight.shape[0]:
        raise ValueError(f"bias must have shape (out,) = ({weight.shape[0]},) but has {tuple(bias.shape)}")
    if bias.dtype != x.dtype:
        raise TypeError(
            f"bias must have x's dtype {x.dtype} but has {bias.dtype}: convert it, for example bias.to(x.dtype)"
        )
    check_device("bias", bias, x)


def check_device(name: str, tensor: torch.Tensor, x: torch.Tensor) -> None:
    """The tensor is on x's device."""
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device} but is on {tensor.device}: move it with .to()")


def check_scores(scores: torch.Tensor, weight: torch.Tensor) -> None:
    """Scores are float32, of weight's shape and on its device."""
    if scores.shape != weight.shape:
        raise ValueError(f"scores must have weight's shape {tuple(weight.shape)} but have {tuple(scores.shape)}")
    if scores.dtype != torch.float32:
        raise TypeError(f"scores must be float32 but are {scores.dtype}: keep them so and convert only x and weight")
    check_device("scores", scores, weight)


def check_importance(importance: torch.Tensor | None, weight: torch.Tensor) -> None:
    """Importance is absent, or floating, of weight's shape and on its device."""
    if importance is None:
        return
    if importance.shape != weight.shape:
        raise ValueError(f"importance must have weight's shape {tuple(weight.shape)} but has {tuple(importance.shape)}")
    if not importance.dtype.is_floating_point:
        raise TypeError(f"importance must have a floating dtype but has {importance.dtype}: convert it with .float()")
    check_device("importance", importance, weight)


def check_packed(packed: torch.Tensor, weight: torch.Tensor) -> None:
    """Packed gates are uint8 (out, ceil(in / 8)) on weight's device."""
    expected = (weight.shape[0], (weight.shape[1] + 7) // 8)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed gates must be uint8 but are {packed.dtype}: make them with pack_gates")
    if packed.dim() != 2 or packed.shape[0] != expected[0] or packed.shape[1] != expected[1]:
        raise ValueError(
            f"packed gates of a weight {tuple(weight.shape)} must have shape {expected} but have {tuple(packed.shape)}"
        )
    check_device("packed gates", packed, weight)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """The option is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))} but is {value!r}")
