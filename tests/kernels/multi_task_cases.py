"""Inputs of products of many tasks, what PyTorch itself makes of them, and a call of either operation by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import gelu, linear, relu, silu

import tss_kernels
from tss_kernels.testing import assert_as_exact_as_pytorch

Tensor = torch.Tensor
ACTIVATIONS = {"relu": relu, "gelu": gelu, "silu": silu, "tanh": torch.tanh}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OPERATIONS = ("linear", "adapter")


def draw(
    ids: Sequence[int], length: int, features: tuple[int, int], dtype: torch.dtype, tasks: int, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of both operations, of unit size; features: (in, out), of the adapter (d, bottleneck)."""
    generator, (d, out) = torch.Generator().manual_seed(seed), features

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def bank(rows: int, columns: int) -> Tensor:
        gates = torch.rand(tasks, rows, columns, generator=generator) < 0.6
        packed = [tss_kernels.pack_gates(one.float(), 0.5) for one in gates]
        return torch.stack(packed) if packed else torch.empty(0, rows, (columns + 7) // 8, dtype=torch.uint8)

    scale = max(d, 1) ** -0.5
    return {
        "x": normal(len(ids), length, d),
        "down_weight": (normal(out, d).double() * scale).to(dtype),
        "down_bank": bank(out, d),
        "up_weight": normal(d, out),
        "up_bank": bank(d, out),
        "task_ids": torch.tensor(ids, dtype=torch.int64),
        "down_bias": normal(out),
        "up_bias": normal(d),
    }


def on(tensors: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """All of them on a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def run(op: str, t: dict[str, Tensor], activation: str = "gelu") -> Tensor:
    """multi_task_linear by the down map, or multi_task_adapter."""
    if op == "adapter":
        return tss_kernels.multi_task_adapter(**t, activation=activation)
    return tss_kernels.multi_task_linear(t["x"], t["down_weight"], t["down_bank"], t["task_ids"], t["down_bias"])


def single(op: str, t: dict[str, Tensor], entry: int, activation: str = "gelu") -> Tensor:
    """The single-task operation on one entry of x."""
    task = int(t["task_ids"][entry])
    down = t["down_weight"], t["down_bank"][task]
    if op == "adapter":
        up = t["up_weight"], t["up_bank"][task]
        return tss_kernels.packed_adapter(
            t["x"][entry], *down, *up, t["down_bias"], t["up_bias"], activation=activation
        )
    return tss_kernels.packed_linear(t["x"][entry], *down, t["down_bias"])


def by_hand(op: str, t: dict[str, Tensor], activation: str = "gelu", shuffled: torch.Generator | None = None) -> Tensor:
    """The same by PyTorch alone, one entry after the other; shuffled: with sums in another order."""
    parts = []
    for x, task in zip(t["x"], t["task_ids"].tolist(), strict=True):
        down, up = (
            torch.where(_unpacked(t[f"{name}_bank"][task], t[f"{name}_weight"].shape[1]), t[f"{name}_weight"], 0)
            for name in ("down", "up")
        )
        y = _product(x, down, t["down_bias"], shuffled)
        parts.append(x + _product(ACTIVATIONS[activation](y), up, t["up_bias"], shuffled) if op == "adapter" else y)
    features = t["x"].shape[-1] if op == "adapter" else t["down_weight"].shape[0]
    return torch.stack(parts) if parts else t["x"].new_zeros((*t["x"].shape[:-1], features)) + 0 * t["x"].sum()


def _product(x: Tensor, weight: Tensor, bias: Tensor, shuffled: torch.Generator | None) -> Tensor:
    if shuffled is None:
        return linear(x, weight, bias)
    out, columns = (torch.randperm(size, generator=shuffled).to(x.device) for size in weight.shape)
    return linear(x[:, columns], weight[out][:, columns], bias[out])[:, out.argsort()]


def _unpacked(packed: Tensor, columns: int) -> Tensor:
    bits = packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten(1)[:, :columns].bool()


def value_and_gradient(
    function: Callable[..., Tensor], op: str, t: dict[str, Tensor], dy: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """y and dL/dx."""
    x = t["x"].detach().requires_grad_()
    y = function(op, t | {"x": x}, *rest)
    y.backward(dy)
    assert x.grad is not None, "no gradient of x arrived"
    return y.detach(), x.grad


def check(op: str, t: dict[str, Tensor], activation: str = "gelu") -> None:
    """Value and gradient are as exact as PyTorch's own, against float64.

    PyTorch's own error is the largest of several orders of its sums: in float64 that is all that its own order lacks,
    and elsewhere one order may be exact by luck.
    """
    dtype = t["x"].dtype
    wide = {name: tensor.double() if tensor.dtype is dtype else tensor for name, tensor in t.items()}
    shape = (*t["x"].shape[:2], t["x"].shape[2] if op == "adapter" else t["down_weight"].shape[0])
    generator = torch.Generator().manual_seed(9)
    dy = torch.randn(shape, generator=generator, dtype=torch.float64).to(t["x"].device, dtype)
    exact = value_and_gradient(by_hand, op, wide, dy.double(), activation)
    own = [value_and_gradient(by_hand, op, t, dy, activation, order) for order in (None, *[generator] * 4)]
    actual = value_and_gradient(run, op, t, dy, activation)
    for place, (value, truth) in enumerate(zip(actual, exact, strict=True)):
        if value.numel():
            least = max((one[place] for one in own), key=lambda one: (one.double() - truth).abs().max().item())
            assert_as_exact_as_pytorch(value, least, truth)
        assert (value.shape, value.dtype) == (truth.shape, dtype)
