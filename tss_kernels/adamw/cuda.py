"""Soft-masked AdamW in CUDA C++: one launch updates all float32 tensors, one more all others; csrc/cuda/adamw.cu.

The description of the tensors is passed in the launch arguments: nothing is copied to the device. If the device reads
the step number, each of these launches follows one that computes from it what the step needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tss_kernels.adamw.table import COLUMNS, KINDS_AT, refuse_capture, scalars_of, table_of
from tss_kernels.backends.cuda import kernels, target
from tss_kernels.tensors import DTYPE_CODES

# Type of a step number, in the bits above the types of its parameter's tensors in the table.
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
) -> None:
    """Take one AdamW step in place, with the reference's formula and roundings; a parameter's dtypes may differ.

    site "gradient": grad * (1 - importance) enters Adam; "update": Adam's whole step, decay included, is scaled by
    (1 - importance). `step` counts from 1. Raises RuntimeError under CUDA graph capture, which would replay this step
    number forever: pass step and lr as tensors there.
    """
    refuse_capture(step)
    if params:
        table, device = table_of(params, grads, exp_avgs, exp_avg_sqs, importances), params[0].device
        kernels(device).adamw(
            table.numbers, *scalars_of(step, lr, beta1, beta2, eps, weight_decay), site == "update", weight_decay != 0,
            *target(device),
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
    """Take the same step with step numbers and learning rate read on the device, from 0-dim tensors.

    Each parameter has a step number (float32, float64 or int64); the learning rate is float32 or float64.
    """
    if not params:
        return
    table, device = table_of(params, grads, exp_avgs, exp_avg_sqs, importances), params[0].device
    for index, number in enumerate(steps):
        table.numbers[COLUMNS * index + KINDS_AT] |= STEP_KINDS[number.dtype]
    made = torch.empty(3 * len(params), dtype=torch.float32, device=device)
    kernels(device).adamw_on_device(
        table.numbers, [number.data_ptr() for number in steps], made.data_ptr(), lr.data_ptr(), DTYPE_CODES[lr.dtype],
        beta1, beta2, weight_decay, eps, site == "update", *target(device),
    )  # fmt: skip
    table.put_back()


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how a step is launched."""
    del op, device, dtype, shape
    return "blocks of 1024 elements, 256 threads, one launch for all tensors of float32 and one for all others"
