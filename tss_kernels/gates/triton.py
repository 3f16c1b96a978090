"""Gates in Triton: packing and unpacking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton

from tss_kernels.backends.triton import launch
from tss_kernels.gates.triton_kernels import pack_kernel, unpack_kernel
from tss_kernels.tensors import empty_packed

OUT, IN, WARPS = 8, 256, 4  # rows and columns per program, and its warps


def _tiles(out_features: int, in_features: int) -> int:
    return triton.cdiv(out_features, OUT) * triton.cdiv(in_features, IN)


def _pack(pair: Sequence[torch.Tensor], threshold: float, packed: Sequence[torch.Tensor]) -> None:
    """Pack one or two matrices in one launch."""
    scores = [tensor.contiguous() for tensor in pair]
    tiles = [_tiles(*tensor.shape) for tensor in scores]
    if sum(tiles) > 0:
        launch(
            pack_kernel, sum(tiles),
            scores[0], packed[0], scores[-1], packed[-1], float(threshold), *scores[0].shape, *scores[-1].shape,
            tiles[0], OUT=OUT, IN=IN, num_warps=WARPS,
        )  # fmt: skip


def pack_gates(scores: torch.Tensor, threshold: float, packed: torch.Tensor | None = None) -> torch.Tensor:
    """Pack the gates of scores (out, in): uint8 (out, ceil(in / 8)), into `packed` if it is given.

    scores: float32, float16 or bfloat16 with any strides; the threshold is rounded to their dtype, as PyTorch does.
    """
    packed = empty_packed(scores) if packed is None else packed
    _pack([scores], threshold, [packed])
    return packed


def pack_gates_pair(first: torch.Tensor, second: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `pack_gates` on two matrices on one device in one launch; their dtypes and shapes may differ."""
    packed = empty_packed(first), empty_packed(second)
    _pack((first, second), threshold, packed)
    return packed


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """Unpack uint8 (out, ceil(in / 8)) with any strides to bool (out, in), without the padding."""
    gate = torch.empty((packed.shape[0], in_features), dtype=torch.bool, device=packed.device)
    if gate.numel() > 0:
        launch(
            unpack_kernel, _tiles(*gate.shape),
            packed.contiguous(), gate.view(torch.uint8), *gate.shape, OUT=OUT, IN=IN, num_warps=WARPS,
        )  # fmt: skip
    return gate


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how an operation on gates is launched."""
    del op, device, dtype, shape
    return f"tiles of {OUT} x {IN} gates, {WARPS} warps"
