"""Shared by the GPU backends: both operations, using kernels that group the rows of a batch by task.

Nothing here waits for the device. Ids on the CPU, where such kernels run in tests, are checked before anything is read.
Ids on a GPU are not, because Python would have to wait for them: for an id outside the bank, the kernels read the gates
of an existing task and write NaN to the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from tss_kernels.multi_task import reference
from tss_kernels.tensors import rows_of
from tss_kernels.validation import check_ids_in_bank

Tensor = torch.Tensor


class Groups(NamedTuple):
    """A batch grouped by task, on the device.

    Attributes:
        order: int64 (entries,), the entries sorted by task, in their order within a task.
        tiles: int64 (tiles, 3): the task, or -1 for rows of no task; the first row among the rows of `order`; the
            number of rows, which may be 0.
        length: rows per entry.
    """

    order: Tensor
    tiles: Tensor
    length: int


class Kernels(NamedTuple):
    """A backend's kernels.

    Attributes:
        group: (task_ids, length, tasks, dtype) -> Groups, for products in that dtype.
        product: (rows, weight, bank, groups, bias, activation, residual) -> y and hidden; rows (rows, in) with any
            strides. Without activation (""), y = product + bias + residual in the residual's dtype. With one, y is the
            activation's result, and hidden is what its derivative is computed from.
        product_grad: (dy, weight, bank, groups, activation, hidden, residual) -> dx; with an activation, times its
            derivative computed from `hidden`; plus the residual, in its dtype.
    """

    group: Callable[[Tensor, int, int, torch.dtype], Groups]
    product: Callable[[Tensor, Tensor, Tensor, Groups, Tensor | None, str, Tensor | None], tuple[Tensor, Tensor]]
    product_grad: Callable[[Tensor, Tensor, Tensor, Groups, str, Tensor | None, Tensor | None], Tensor]


def empty_groups(task_ids: Tensor, length: int, tasks: int, tile_rows: int) -> Groups:
    """Allocate as many tiles of `tile_rows` rows as a batch can need: by sizes only, so that nothing waits for ids.

    Task t, whose first entry is number s of the order, has its first tile at s * length // tile_rows + min(t, s). From
    one task that occurs to the next, both terms grow enough for the tiles in between: the first by at least the number
    of whole tiles of rows, the second by one for the remaining rows.
    """
    entries = task_ids.shape[0]
    most = entries * length // tile_rows + min(tasks + 1, entries)  # ids outside the bank count as one more task
    order = torch.empty((entries,), dtype=torch.int64, device=task_ids.device)
    return Groups(order, torch.empty((most, 3), dtype=torch.int64, device=task_ids.device), length)


def _check_on_the_host(task_ids: Tensor, tasks: int) -> None:
    """Raise ValueError for an id outside a bank of `tasks` tasks, if the ids are on the CPU, so that nothing waits."""
    if task_ids.device.type == "cpu":
        check_ids_in_bank(task_ids, tasks)


def linear(kernels: Kernels, x: Tensor, weight: Tensor, bank: Tensor, task_ids: Tensor, bias: Tensor | None) -> Tensor:
    """Return y as `reference.linear` does."""
    (entries, length, _), out_features, tasks = x.shape, weight.shape[0], bank.shape[0]
    _check_on_the_host(task_ids, tasks)
    if 0 in (*x.shape, *weight.shape):
        return reference.linear(x, weight, bank, task_ids, bias)
    if tasks == 0:
        return x.new_full((entries, length, out_features), torch.nan)
    groups = kernels.group(task_ids, length, tasks, weight.dtype)
    y, _ = kernels.product(rows_of(x), weight, bank, groups, bias, "", None)
    return y.view(entries, length, out_features)


def linear_input_grad(kernels: Kernels, dy: Tensor, weight: Tensor, bank: Tensor, task_ids: Tensor) -> Tensor:
    """Return dx as `reference.linear_input_grad` does."""
    (entries, length, _), in_features, tasks = dy.shape, weight.shape[1], bank.shape[0]
    _check_on_the_host(task_ids, tasks)
    if 0 in (*dy.shape, *weight.shape):
        return reference.linear_input_grad(dy, weight, bank, task_ids)
    if tasks == 0:
        return dy.new_full((entries, length, in_features), torch.nan)
    groups = kernels.group(task_ids, length, tasks, weight.dtype)
    dx = kernels.product_grad(rows_of(dy), weight, bank, groups, "", None, None)
    return dx.view(entries, length, in_features)


def adapter(
    kernels: Kernels,
    x: Tensor,
    down_weight: Tensor,
    down_bank: Tensor,
    up_weight: Tensor,
    up_bank: Tensor,
    task_ids: Tensor,
    down_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Return y and hidden as `reference.adapter` does: two products that include the activation and the residual."""
    (entries, length, _), bottleneck, tasks = x.shape, down_weight.shape[0], down_bank.shape[0]
    _check_on_the_host(task_ids, tasks)
    if 0 in (*x.shape, bottleneck):
        return reference.adapter(
            x, down_weight, down_bank, up_weight, up_bank, task_ids, down_bias, up_bias, activation
        )
    if tasks == 0:
        hidden = down_weight.new_full((entries, length, bottleneck), torch.nan)
        return x.new_full(x.shape, torch.nan), hidden
    groups, rows = kernels.group(task_ids, length, tasks, down_weight.dtype), rows_of(x)
    active, hidden = kernels.product(
        rows.to(down_weight.dtype), down_weight, down_bank, groups, down_bias, activation, None
    )
    y, _ = kernels.product(active, up_weight, up_bank, groups, up_bias, "", rows)
    return y.view(x.shape), hidden.view(entries, length, bottleneck)


def adapter_input_grad(
    kernels: Kernels,
    dy: Tensor,
    hidden: Tensor,
    down_weight: Tensor,
    down_bank: Tensor,
    up_weight: Tensor,
    up_bank: Tensor,
    task_ids: Tensor,
    activation: str,
) -> Tensor:
    """Return dx as `reference.adapter_input_grad` does."""
    tasks = down_bank.shape[0]
    _check_on_the_host(task_ids, tasks)
    if 0 in (*dy.shape, down_weight.shape[0]):
        return reference.adapter_input_grad(
            dy, hidden, down_weight, down_bank, up_weight, up_bank, task_ids, activation
        )
    if tasks == 0:
        return dy.new_full(dy.shape, torch.nan)
    groups, rows = kernels.group(task_ids, dy.shape[1], tasks, down_weight.dtype), rows_of(dy)
    d_hidden = kernels.product_grad(
        rows.to(up_weight.dtype), up_weight, up_bank, groups, activation, rows_of(hidden).contiguous(), None
    )
    return kernels.product_grad(d_hidden, down_weight, down_bank, groups, "", None, rows).view(dy.shape)


class Operations(NamedTuple):
    """A backend's operations, with the arguments and results of those of the same names in `reference`."""

    linear: Callable[..., Tensor]
    linear_input_grad: Callable[..., Tensor]
    adapter: Callable[..., tuple[Tensor, Tensor]]
    adapter_input_grad: Callable[..., Tensor]


def operations(kernels: Kernels) -> Operations:
    """Return the operations that use these kernels."""
    return Operations(
        partial(linear, kernels),
        partial(linear_input_grad, kernels),
        partial(adapter, kernels),
        partial(adapter_input_grad, kernels),
    )
