"""Products of rows of many tasks in C++, one call for all tasks.

Panels of a task's masked weight are built in the processor's cache and multiplied by the task's rows, in an order of
sums that depends on nothing else in the batch.
"""

from __future__ import annotations

import torch

from tss_kernels.backends.native import described, kernels
from tss_kernels.gated_adapter import reference as adapters
from tss_kernels.tensors import ACTIVATION_CODES, DTYPE_CODES, address, bank_of, rows_of
from tss_kernels.validation import refuse_id


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bank: torch.Tensor,
    task_ids: torch.Tensor,
    bias: torch.Tensor | None,
    backward: bool,
) -> torch.Tensor:
    """Multiply x (entries, length, features) by each entry's masked weight; in the backward pass by its transpose."""
    (out_features, in_features), (entries, length) = weight.shape, x.shape[:2]
    y = x.new_empty((entries, length, in_features if backward else out_features))
    rows = rows_of(x)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    bank, task_bytes = bank_of(bank)
    weight, task_ids, bias = weight.contiguous(), task_ids.contiguous(), None if bias is None else bias.contiguous()
    outside = kernels.multi_task_product(
        rows.data_ptr(), rows.stride(0), weight.data_ptr(), DTYPE_CODES[x.dtype], bank.data_ptr(), task_bytes,
        bank.shape[0], task_ids.data_ptr(), entries, length, address(bias), y.data_ptr(), out_features, in_features,
        backward, torch.get_num_threads(),
    )  # fmt: skip
    if outside >= 0:
        refuse_id(outside, int(task_ids[outside]), bank.shape[0])
    return y


def linear(
    x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, task_ids: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return y as `reference.linear` does."""
    return _product(x, weight, bank, task_ids, bias, backward=False)


def linear_input_grad(
    dy: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, task_ids: torch.Tensor
) -> torch.Tensor:
    """Return dx as `reference.linear_input_grad` does."""
    return _product(dy, weight, bank, task_ids, None, backward=True)


def activate(before: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply the activation to a contiguous tensor; each result's bits depend only on its own element."""
    active = torch.empty_like(before)
    kernels.activate(
        before.data_ptr(), active.data_ptr(), DTYPE_CODES[before.dtype], ACTIVATION_CODES[activation], before.numel(),
        torch.get_num_threads(),
    )  # fmt: skip
    return active


def adapter(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_bank: torch.Tensor,
    up_weight: torch.Tensor,
    up_bank: torch.Tensor,
    task_ids: torch.Tensor,
    down_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and hidden as `reference.adapter` does."""
    before = linear(x.to(down_weight.dtype), down_weight, down_bank, task_ids, down_bias)
    active = activate(before, activation)
    y = adapters.add_residual(linear(active, up_weight, up_bank, task_ids, up_bias), x)
    return y, active if activation in adapters.FROM_RESULT else before


def adapter_input_grad(
    dy: torch.Tensor,
    hidden: torch.Tensor,
    down_weight: torch.Tensor,
    down_bank: torch.Tensor,
    up_weight: torch.Tensor,
    up_bank: torch.Tensor,
    task_ids: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """Return dx as `reference.adapter_input_grad` does."""
    return adapters.input_grad(
        dy, hidden, down_weight, down_bank, up_weight, up_bank, activation, True,
        lambda grad, weight, bank: linear_input_grad(grad, weight, bank, task_ids),
    )[0]  # fmt: skip


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the products run."""
    del device, dtype, shape
    one = "panels of each task's W * g in cache, by the task's rows"
    return described(one if op == "multi_task_linear" else f"two products around the activation: {one}")
