"""Argument checks that several operations share: every message names the condition, the values and the remedy."""

from __future__ import annotations

import torch


def check_same_shape(op: str, name: str, tensor: torch.Tensor | None, like_name: str, like: torch.Tensor) -> None:
    """Raise ValueError unless `tensor` is None or has the shape of `like`."""
    if tensor is not None and tensor.shape != like.shape:
        raise ValueError(
            f"{op}: {name} must have the shape of {like_name}, got {tuple(tensor.shape)} and {tuple(like.shape)}"
        )


def check_same_device(op: str, **tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless all tensors are on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {listed}; move them with .to(device)")


def check_linear(op: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise unless x (..., in), weight (out, in) and bias (out,) fit in shape, dtype and device."""
    if weight.dim() != 2:
        raise ValueError(f"{op}: weight must be (out, in), got shape {tuple(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: the last dimension of x must be weight's in_features = {weight.shape[1]}, got x {tuple(x.shape)}"
        )
    if not x.is_floating_point() or x.dtype != weight.dtype:
        raise TypeError(
            f"{op}: x and weight must have one floating dtype, got {x.dtype} and {weight.dtype}; "
            "cast one of them, or run under torch.autocast"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{op}: bias must have out_features = {weight.shape[0]} entries, got shape {tuple(bias.shape)}"
        )
    if bias is not None and bias.dtype != weight.dtype:
        raise TypeError(f"{op}: bias must have weight's dtype {weight.dtype}, got {bias.dtype}; cast it")


def check_scores(op: str, scores: torch.Tensor) -> None:
    """Raise TypeError unless scores are float32, or float64 for checking the mathematics."""
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: scores must be float32, got {scores.dtype}; keep them in float32 and cast x and weight")


def check_packed(op: str, packed: torch.Tensor, out_features: int, in_features: int) -> None:
    """Raise unless packed is uint8 (out, ceil(in / 8))."""
    expected = (out_features, (in_features + 7) // 8)
    if packed.dtype != torch.uint8:
        raise TypeError(f"{op}: packed gates must be uint8, got {packed.dtype}; make them with pack_gates")
    if tuple(packed.shape) != expected:
        raise ValueError(
            f"{op}: packed gates of a weight ({out_features}, {in_features}) must be {expected}, "
            f"got {tuple(packed.shape)}; make them with pack_gates"
        )
