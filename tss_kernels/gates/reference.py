"""Gates in plain PyTorch: the specification of the bit layout and of the packed product."""

from __future__ import annotations

import torch

BITS = 8
# Eight gates are the bytes of one 64-bit word, the first column lowest, as memory has them (little-endian).
GATHER = 0x0102040810204080  # the product moves the 0 or 1 of byte i to bit 56 + i, without a carry
REPEAT = 0x0101010101010101  # the product copies one byte to all eight
SELECT = 0x8040201008040201 - (1 << 64)  # leaves bit i of byte i; as a signed number


def gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """g = 1[scores >= threshold] as bool; NaN compares false, so its gate is off."""
    return scores >= threshold


def pack(gate: torch.Tensor) -> torch.Tensor:
    """bool (out, in) to uint8 (out, ceil(in / 8)): bit i of byte j is column 8 j + i, the last byte padded with 0."""
    padding = -gate.shape[1] % BITS
    padded = torch.nn.functional.pad(gate, (0, padding)) if padding else gate.contiguous()
    if padded.numel() == 0:
        return padded.new_empty((padded.shape[0], padded.shape[1] // BITS), dtype=torch.uint8)
    return (padded.view(torch.int64) * GATHER >> 56).to(torch.uint8)


def pack_gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """The gates of scores (out, in), packed: uint8 (out, ceil(in / 8))."""
    return pack(gates(scores, threshold))


def pack_gates_pair(first: torch.Tensor, second: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`pack_gates` of two matrices, which other backends do in one launch."""
    return pack_gates(first, threshold), pack_gates(second, threshold)


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """uint8 (out, ceil(in / 8)) to bool (out, in); the padding is cut off."""
    if packed.numel() == 0:
        return packed.new_empty((packed.shape[0], in_features), dtype=torch.bool)
    spread = packed.to(torch.int64) * REPEAT & SELECT
    return spread.contiguous().view(torch.uint8)[:, :in_features] != 0


def masked(weight: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """W * g by selection: an off entry is exactly 0 even where the weight is not finite."""
    return torch.where(gate, weight, 0)


def packed_linear(
    x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """y = x @ (W * g).T + bias with x (rows, in), weight (out, in), packed uint8 (out, ceil(in / 8)), bias (out,)."""
    return torch.nn.functional.linear(x, masked(weight, unpack_gates(packed, weight.shape[1])), bias)
