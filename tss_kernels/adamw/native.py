"""Soft-masked AdamW in C++: one call and one pass over memory for every tensor of a list."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tss_kernels.adamw.table import table_of
from tss_kernels.backends.native import described, kernels


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
    """One AdamW step in place, as the reference's but for last bits of PyTorch's root; a parameter's dtypes may differ.

    site "gradient": grad * (1 - importance) enters Adam; "update": Adam's whole step, decay included, is scaled by
    (1 - importance). `step` counts from 1. Where `packed` has a tensor (of a float32 matrix), it becomes the gates of
    the new parameter at that threshold, and their changes are added to that entry of flips, int64.
    """
    table = table_of((params, grads, exp_avgs, exp_avg_sqs), importances, packed, thresholds, flips)
    options = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay, "site": site}
    run(array("q", table.numbers), array("d", table.thresholds), step, options)
    table.put_back()


def run(numbers: array[int], thresholds: array[float], step: float, options: Mapping[str, Any]) -> None:
    """The step of a table's parameters; options as an optimizer's group has them."""
    lr, weight_decay = float(options["lr"]), options["weight_decay"]
    beta1, beta2 = map(float, options["betas"])
    kernels.adamw(
        numbers.buffer_info()[0], thresholds.buffer_info()[0], len(thresholds), lr * weight_decay, 1 - beta1, beta2,
        1 - beta2, lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, options["eps"], options["site"] == "update",
        weight_decay != 0, torch.get_num_threads(),
    )  # fmt: skip


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """How a step runs."""
    del op, device, dtype, shape
    return described("one pass over all tensors")
