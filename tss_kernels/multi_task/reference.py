"""Products of rows of many tasks in plain PyTorch: the specification, one single-task product for each entry.

An entry is an index of x's first dimension: `length` rows that belong to one task. Each is multiplied separately, as
gated_linear's and gated_adapter's reference multiplies it alone, so no bit of it depends on the rest of the batch. This
is a Python loop over entries: a specification, not a fast implementation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear as dense

from tss_kernels.gated_adapter import reference as adapters
from tss_kernels.gates.reference import masked, unpack_gates
from tss_kernels.validation import check_ids_in_bank

# entry -> W * g of its task
Masked = Callable[[int], torch.Tensor]


def _masked_by_task(weight: torch.Tensor, bank: torch.Tensor, task_ids: torch.Tensor) -> Masked:
    """Return W * g by entry, computed once per task that occurs. Raises ValueError for an id outside the bank."""
    ids, made = check_ids_in_bank(task_ids, bank.shape[0]), dict[int, torch.Tensor]()

    def of_entry(entry: int) -> torch.Tensor:
        task = ids[entry]
        if task not in made:
            made[task] = masked(weight, unpack_gates(bank[task], weight.shape[1]))
        return made[task]

    return of_entry


def linear(
    x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, task_ids: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Compute y[e] = x[e] (W * g of task_ids[e])ᵀ + b.

    x (entries, length, in); weight (out, in) of x's dtype; bank uint8 (tasks, out, ceil(in / 8)); task_ids int64
    (entries,); bias (out,) or None. Returns (entries, length, out). Raises ValueError for an id outside the bank.
    """
    weights, y = _masked_by_task(weight, bank, task_ids), x.new_empty((*x.shape[:2], weight.shape[0]))
    for entry in range(x.shape[0]):
        y[entry] = dense(x[entry], weights(entry), bias)
    return y


def linear_input_grad(
    dy: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, task_ids: torch.Tensor
) -> torch.Tensor:
    """Compute dL/dx[e] = dY[e] (W * g of task_ids[e]): dy (entries, length, out); returns (entries, length, in)."""
    weights, dx = _masked_by_task(weight, bank, task_ids), dy.new_empty((*dy.shape[:2], weight.shape[1]))
    for entry in range(dy.shape[0]):
        dx[entry] = dy[entry] @ weights(entry)
    return dx


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
    """Compute y[e] = x[e] + W_up' a(W_down' x[e] + b_down) + b_up by task_ids[e]'s gates, and `hidden` for backward.

    x (entries, length, d); down_bank uint8 (tasks, bottleneck, ceil(d / 8)); up_bank (tasks, d, ceil(bottleneck / 8));
    the rest, dtypes and hidden (entries, length, bottleneck) as in gated_adapter's `forward`. Raises ValueError.
    """
    down = _masked_by_task(down_weight, down_bank, task_ids)
    up = _masked_by_task(up_weight, up_bank, task_ids)
    y, hidden = torch.empty_like(x, memory_format=torch.contiguous_format), _hidden(x, down_weight)
    for entry in range(x.shape[0]):
        y[entry], hidden[entry] = adapters.forward(
            x[entry], down(entry), down_bank, up(entry), up_bank, down_bias, up_bias, activation, _product
        )
    return y, hidden


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
    """Compute dL/dx of `adapter`: dY + dH W_down', dH = (dY W_up') * a'(h); dy and result (entries, length, d)."""
    down = _masked_by_task(down_weight, down_bank, task_ids)
    up = _masked_by_task(up_weight, up_bank, task_ids)
    dx = torch.empty_like(dy, memory_format=torch.contiguous_format)
    for entry in range(dy.shape[0]):
        dx[entry], _ = adapters.input_grad(
            dy[entry], hidden[entry], down(entry), down_bank, up(entry), up_bank, activation, True, _product_grad
        )
    return dx


def _hidden(x: torch.Tensor, down_weight: torch.Tensor) -> torch.Tensor:
    return down_weight.new_empty((*x.shape[:2], down_weight.shape[0]))


def _product(x: torch.Tensor, weight: torch.Tensor, _: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply by an already masked weight."""
    return dense(x, weight, bias)


def _product_grad(dy: torch.Tensor, weight: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return dy @ weight
