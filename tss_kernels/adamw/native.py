"""Soft-masked AdamW in C++: one call and one pass over memory for every tensor of a list."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain, repeat

import torch

from tss_kernels.adamw.arguments import Lists, Options
from tss_kernels.adamw.table import COLUMNS, scalars_of, table_of
from tss_kernels.backends.native import described, kernels
from tss_kernels.overlap import Memory
from tss_kernels.tensors import DTYPE_CODES


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
    """Take one AdamW step in place, the reference's up to last bits of PyTorch's root; a parameter's dtypes may differ.

    site "gradient": grad * (1 - importance) enters Adam; "update": Adam's whole step, decay included, is scaled by
    (1 - importance). `step` counts from 1.
    """
    table = table_of(params, grads, exp_avgs, exp_avg_sqs, importances)
    _run(array("q", table.numbers), step, lr, Options(beta1, beta2, eps, weight_decay, site))
    table.put_back()


def step_of_plain(lists: Lists, memory: Memory, step: float, lr: float, options: Options) -> None:
    """Take the same step for plain tensors whose memory is known, as returned by `check_lists`."""
    first, starts, count = lists.params[0], memory.starts, len(lists.params)
    params, exp_avgs, exp_avg_sqs, grads = (starts[place * count : (place + 1) * count] for place in range(4))
    masks = iter(starts[4 * count :])
    softs = [0 if importance is None else next(masks) for importance in lists.importances]
    kinds, sizes = repeat(0x11111 * DTYPE_CODES[first.dtype]), [size // first.itemsize for size in memory.sizes[:count]]
    rows = zip(params, grads, exp_avgs, exp_avg_sqs, softs, kinds, sizes, strict=False)  # in the order of `table_of`
    _run(array("q", list(chain.from_iterable(rows))), step, lr, options)


def _run(numbers: array[int], step: float, lr: float, options: Options) -> None:
    beta1, beta2, eps, weight_decay, site = options
    kernels.adamw(
        numbers.buffer_info()[0], len(numbers) // COLUMNS, *scalars_of(step, lr, beta1, beta2, eps, weight_decay),
        site == "update", weight_decay != 0, torch.get_num_threads(),
    )  # fmt: skip


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how a step runs."""
    del op, device, dtype, shape
    return described("one pass over all tensors")
