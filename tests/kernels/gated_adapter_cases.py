"""Inputs of gated_adapter, its value and gradients by PyTorch itself, and their comparison: what its tests share."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, linear, relu, silu

import tss_kernels
from tss_kernels.testing import assert_as_exact_as_pytorch

ACTIVATIONS = {"relu": relu, "gelu": gelu, "silu": silu, "tanh": torch.tanh}
NAMES = ("x", "down_weight", "down_scores", "up_weight", "up_scores", "down_bias", "up_bias")


def draw(rows: int, d: int, bottleneck: int, dtype: torch.dtype, device) -> dict[str, torch.Tensor]:
    """Inputs of hidden units of about unit size, so that every activation bends."""
    generator = torch.Generator().manual_seed(rows + 7 * d + 77 * bottleneck)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    drawn = {
        "x": normal(rows, d).to(dtype),
        "down_weight": (normal(bottleneck, d) / max(d, 1) ** 0.5).to(dtype),
        "down_scores": normal(bottleneck, d).float(),
        "up_weight": normal(d, bottleneck).to(dtype),
        "up_scores": normal(d, bottleneck).float(),
        "down_bias": normal(bottleneck).to(dtype),
        "up_bias": normal(d).to(dtype),
        "dy": normal(rows, d).to(dtype),
        "down_importance": torch.rand(bottleneck, d, generator=generator),
        "up_importance": torch.rand(d, bottleneck, generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in drawn.items()}


def by_hand(t: dict[str, torch.Tensor], activation: str, threshold: float, dtype: torch.dtype):
    """Value and gradients as PyTorch itself computes them in one dtype, those of the scores by their formula."""
    wide = torch.promote_types(dtype, torch.float32)
    leaves = {name: t[name].detach().to(dtype).requires_grad_() for name in NAMES if "scores" not in name}
    down_on, up_on = (t[f"{layer}_scores"] >= threshold for layer in ("down", "up"))
    before = linear(leaves["x"], torch.where(down_on, leaves["down_weight"], 0), leaves["down_bias"])
    active = ACTIVATIONS[activation](before)
    branch = linear(active, torch.where(up_on, leaves["up_weight"], 0), leaves["up_bias"])
    y = leaves["x"] + branch
    before.retain_grad()
    dy = t["dy"].to(dtype)
    y.backward(dy)
    values = {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()}
    pairs = {"down": (before.grad, leaves["x"]), "up": (dy, active)}
    for layer, (d_out, given) in pairs.items():
        product = d_out.to(wide).T @ given.detach().to(wide)
        keep = 1 - t[f"{layer}_importance"].to(wide)
        values[f"{layer}_scores"] = product * t[f"{layer}_weight"].to(wide) * keep
    return values


def check(actual: dict[str, torch.Tensor], t: dict[str, torch.Tensor], activation: str, threshold: float) -> None:
    pytorch = by_hand(t, activation, threshold, t["x"].dtype)
    exact = by_hand(t, activation, threshold, torch.float64)
    for name, value in actual.items():
        assert value.dtype == (torch.float32 if "scores" in name else t["x"].dtype)
        assert_as_exact_as_pytorch(value, pytorch[name].to(value.dtype), exact[name])


def run(
    t: dict[str, torch.Tensor], backend: str, activation: str, threshold: float = 0.1, trained: tuple[str, ...] = NAMES
) -> dict[str, torch.Tensor]:
    """y and the gradients of what is trained, from scores."""
    leaves = {name: t[name].detach().requires_grad_(name in trained) for name in NAMES}
    importance = {name: t[name] for name in ("down_importance", "up_importance")}
    with tss_kernels.use_backend(backend):
        y = tss_kernels.gated_adapter(**leaves, activation=activation, threshold=threshold, **importance)
    y.backward(t["dy"])
    return {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}
