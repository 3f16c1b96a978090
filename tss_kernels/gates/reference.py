"""Gates as bits in plain PyTorch: the specification."""

from __future__ import annotations

import torch


def pack(gate: torch.Tensor) -> torch.Tensor:
    """bool (out, in) -> uint8 (out, ceil(in / 8)); bit i of byte j is column 8 j + i, missing columns are 0."""
    out_features, in_features = gate.shape
    padded = torch.nn.functional.pad(gate.to(torch.uint8), (0, -in_features % 8))
    columns = padded.view(out_features, (in_features + 7) // 8, 8)
    # Shift and add: no table, and exact in uint8 since every bit has its own place.
    return sum((columns[..., i] << i for i in range(8)), torch.zeros_like(columns[..., 0]))


def pack_gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """The gates 1[scores >= threshold] as bits; a NaN score compares false, so its gate is 0."""
    return pack(scores >= threshold)


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """uint8 (out, ceil(in / 8)) -> bool (out, in)."""
    bits = torch.arange(8, dtype=torch.uint8, device=packed.device)
    columns = (packed.unsqueeze(-1) >> bits) & 1
    return columns.flatten(1)[:, :in_features].bool()


def masked_weight(weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """where(gate, weight, 0): masking selects, so an off entry is exactly 0 even where the weight is not finite."""
    return torch.where(unpack_gates(packed, weight.shape[1]), weight, 0)


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """y = x @ (weight * gate).T + bias on x (rows, in)."""
    return torch.nn.functional.linear(x, masked_weight(weight, packed), bias)


def input_grad(dy: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """dx = dy @ (weight * gate), dy (rows, out)."""
    return dy @ masked_weight(weight, packed)
