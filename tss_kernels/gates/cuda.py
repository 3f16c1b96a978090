"""Gates in CUDA C++: packing and unpacking; csrc/cuda/gates.cu has the kernels."""

from __future__ import annotations

import torch

from tss_kernels.backends.cuda import kernels, target
from tss_kernels.tensors import DTYPE_CODES, empty_packed


def pack_gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Pack the gates of scores (out, in): uint8 (out, ceil(in / 8)).

    scores: float32, float16 or bfloat16 with any strides; the threshold is rounded to their dtype, as PyTorch does.
    """
    scores, packed = scores.contiguous(), empty_packed(scores)
    kernels(scores.device).pack_gates(
        scores.data_ptr(), packed.data_ptr(), *scores.shape, 0, 0, 0, 0, DTYPE_CODES[scores.dtype], threshold,
        *target(scores.device),
    )  # fmt: skip
    return packed


def pack_gates_pair(first: torch.Tensor, second: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `pack_gates` on two matrices on one device, in one launch if their dtypes are the same."""
    if first.dtype != second.dtype:
        return pack_gates(first, threshold), pack_gates(second, threshold)
    pair = first.contiguous(), second.contiguous()
    packed = empty_packed(first), empty_packed(second)
    kernels(first.device).pack_gates(
        pair[0].data_ptr(), packed[0].data_ptr(), *first.shape, pair[1].data_ptr(), packed[1].data_ptr(), *second.shape,
        DTYPE_CODES[first.dtype], threshold, *target(first.device),
    )  # fmt: skip
    return packed


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """Unpack uint8 (out, ceil(in / 8)) with any strides to bool (out, in), without the padding."""
    packed = packed.contiguous()
    gate = torch.empty((packed.shape[0], in_features), dtype=torch.bool, device=packed.device)
    kernels(gate.device).unpack_gates(packed.data_ptr(), gate.data_ptr(), *gate.shape, *target(gate.device))
    return gate


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how an operation on gates is launched."""
    del op, device, dtype, shape
    return "one thread for each byte of eight gates, blocks of 256"
