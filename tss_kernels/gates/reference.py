"""Gates in plain PyTorch: the specification of the bit layout."""

from __future__ import annotations

import torch

BITS = 8
# Eight gates are the bytes of one 64-bit word, the first column lowest, as in memory (little-endian).
GATHER = 0x0102040810204080  # multiplying moves the 0 or 1 of byte i to bit 56 + i, without carries
REPEAT = 0x0101010101010101  # multiplying copies one byte to all eight
SELECT = 0x8040201008040201 - (1 << 64)  # keeps bit i of byte i; as a signed number


def gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return g = 1[scores >= threshold] as bool; NaN compares false, so its gate is off."""
    return scores >= threshold


def pack(gate: torch.Tensor) -> torch.Tensor:
    """Pack bool (out, in) to uint8 (out, ceil(in / 8)): bit i of byte j is column 8 j + i, last byte padded with 0."""
    padding = -gate.shape[1] % BITS
    padded = torch.nn.functional.pad(gate, (0, padding)) if padding else gate
    # Flattened first: one row counts as contiguous whatever its strides, but a view as words checks the strides.
    words = padded.reshape(-1).view(torch.int64)
    return (words * GATHER >> 56).to(torch.uint8).view(padded.shape[0], padded.shape[1] // BITS)


def pack_gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Pack the gates of scores (out, in): uint8 (out, ceil(in / 8))."""
    return pack(gates(scores, threshold))


def pack_gates_pair(first: torch.Tensor, second: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `pack_gates` on two matrices; GPU backends do so in one launch."""
    return pack_gates(first, threshold), pack_gates(second, threshold)


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """Unpack uint8 (out, ceil(in / 8)) to bool (out, in), without the padding."""
    spread = packed.to(torch.int64) * REPEAT & SELECT
    return spread.reshape(-1).view(torch.uint8).view(packed.shape[0], BITS * packed.shape[1])[:, :in_features] != 0


def masked(weight: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Select W * g: an off entry is exactly 0 even if the weight is not finite."""
    return torch.where(gate, weight, 0)
