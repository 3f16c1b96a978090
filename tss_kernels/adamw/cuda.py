"""Soft-masked AdamW in CUDA C++: one launch updates all tensors of float32, one more all others; csrc/cuda/adamw.cu.

What describes the tensors travels in the launch itself: nothing is copied to the device and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tss_kernels.adamw.table import table_of
from tss_kernels.backends.cuda import kernels, target
from tss_kernels.tensors import DTYPE_CODES

# Where a parameter's row of the table has its types and, in a step that the device counts, the number's address.
NUMBERS, KINDS_AT, STEP_AT = 10, 5, 9
STEP_KINDS = {torch.float32: 0, torch.float64: 3 << 20, torch.int64: 4 << 20}


def soft_masked_adamw_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    importances: Sequence[torch.Tensor | None],
    *,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    site: str,
    packed: Sequence[torch.Tensor | None] | None = None,
    thresholds: Sequence[float] = (),
    flips: torch.Tensor | None = None,
) -> None:
    """One AdamW step in place, with the reference's formula and roundings; dtypes of a parameter's tensors may differ.

    site "gradient": grad * (1 - importance) enters Adam; "update": Adam's whole step, decay included, is scaled by
    (1 - importance). `step` counts from 1. Where `packed` has a tensor (of a float32 matrix), it becomes the gates of
    the new parameter at that threshold, and their changes are added to that entry of flips, int64. Raises RuntimeError
    under CUDA graph capture, which would replay this step's number forever: give step and lr as tensors there.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"a CUDA graph would replay step={step} forever: give step and lr as tensors (capturable=True)"
        )
    table = table_of((params, grads, exp_avgs, exp_avg_sqs), importances, packed, thresholds, flips)
    if params:
        device = params[0].device
        kernels(device).adamw(
            table.numbers, table.thresholds, lr * weight_decay, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step),
            (1 - beta2**step) ** 0.5, eps, site == "update", weight_decay != 0, *target(device),
        )  # fmt: skip
        table.put_back()


def soft_masked_adamw_capturable_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    importances: Sequence[torch.Tensor | None],
    *,
    steps: Sequence[torch.Tensor],
    lr: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    site: str,
) -> None:
    """The same with each parameter's step number (float32, float64 or int64) and the learning rate (float32 or float64)
    read on the device by the same launch: tensors without dimensions."""
    if not params:
        return
    table, device = table_of((params, grads, exp_avgs, exp_avg_sqs), importances, None, (), None), params[0].device
    numbers = table.numbers
    for index, number in enumerate(steps):
        numbers[NUMBERS * index + KINDS_AT] |= STEP_KINDS[number.dtype]
        numbers[NUMBERS * index + STEP_AT] = number.data_ptr()
    kernels(device).adamw_on_device(
        numbers, table.thresholds, lr.data_ptr(), DTYPE_CODES[lr.dtype], beta1, beta2, weight_decay, eps, site == "update",
        *target(device),
    )  # fmt: skip
    table.put_back()


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """How a step is launched."""
    del op, device, dtype, shape
    return "blocks of 1024 elements, 256 threads, one launch for all tensors of float32 and one for all others"
