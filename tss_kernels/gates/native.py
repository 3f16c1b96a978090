"""Gates in C++: packing and unpacking."""

from __future__ import annotations

import torch

from tss_kernels.backends.native import described, kernels
from tss_kernels.tensors import DTYPE_CODES, empty_packed


def pack_gates(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Pack the gates of scores (out, in): uint8 (out, ceil(in / 8)).

    scores: float32, float16, bfloat16 or float64 with any strides; the threshold is rounded to their dtype, as PyTorch
    does.
    """
    scores = scores.contiguous()
    rows, columns = scores.shape
    packed = empty_packed(scores)
    kernels.pack(
        scores.data_ptr(),
        DTYPE_CODES[scores.dtype],
        threshold,
        packed.data_ptr(),
        rows,
        columns,
        torch.get_num_threads(),
    )
    return packed


def pack_gates_pair(first: torch.Tensor, second: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `pack_gates` on two matrices; their dtypes and shapes may differ."""
    return pack_gates(first, threshold), pack_gates(second, threshold)


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """Unpack uint8 (out, ceil(in / 8)) with any strides to bool (out, in), without the padding."""
    packed, rows = packed.contiguous(), packed.shape[0]
    gate = torch.empty((rows, in_features), dtype=torch.bool, device="cpu")
    kernels.unpack(packed.data_ptr(), gate.data_ptr(), rows, in_features, torch.get_num_threads())
    return gate


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how an operation on gates runs."""
    del op, device, dtype, shape
    return described("eight gates at a time")
