"""Gates in plain PyTorch: the specification of the bit layout and of the packed product."""

from __future__ import annotations

import torch

BITS = 8


def gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """g = 1[scores >= threshold] as bool; NaN compares false, so its gate is off."""
    return scores >= threshold


def pack(gate: torch.Tensor) -> torch.Tensor:
    """bool (out, in) to uint8 (out, ceil(in / 8)): bit i of byte j is column 8 j + i, the last byte padded with 0."""
    padded = torch.nn.functional.pad(gate, (0, -gate.shape[1] % BITS))
    values = 2 ** torch.arange(BITS, dtype=torch.uint8, device=gate.device)
    return (padded.view(gate.shape[0], padded.shape[1] // BITS, BITS) * values).sum(-1, dtype=torch.uint8)


def pack_gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """The gates of scores (out, in), packed: uint8 (out, ceil(in / 8))."""
    return pack(gates(scores, threshold))


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """uint8 (out, ceil(in / 8)) to bool (out, in); the padding is cut off."""
    shifts = torch.arange(BITS, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    return bits.to(torch.bool).view(packed.shape[0], packed.shape[1] * BITS)[:, :in_features].contiguous()


def masked(weight: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """W * g by selection: an off entry is exactly 0 even where the weight is not finite."""
    return torch.where(gate, weight, 0)


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """y = x @ (W * g).T + bias with x (rows, in), weight (out, in), packed uint8 (out, ceil(in / 8)), bias (out,)."""
    return torch.nn.functional.linear(x, masked(weight, unpack_gates(packed, weight.shape[1])), bias)
