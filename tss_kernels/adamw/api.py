"""soft_masked_adamw_: checks and the registered operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tss_kernels.checks import check_choice
from tss_kernels.dispatch import implementation, select
from tss_kernels.operators import implement

SITES = ("update", "gradient")


def _step(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    importances: list[torch.Tensor | None],
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    site: str,
    backend: str,
) -> None:
    implementation("adamw", backend).soft_masked_adamw_(
        params, grads, exp_avgs, exp_avg_sqs, importances,
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, site=site,
    )  # fmt: skip


_step_operator = implement("soft_masked_adamw_", _step)


def _check_lists(lists: dict[str, Sequence[torch.Tensor | None]]) -> None:
    """All lists are as long as params, and every tensor has its parameter's shape and device and a floating dtype."""
    params = lists["params"]
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(f"{name} must have one entry per parameter, {len(params)}, but has {len(tensors)}")
        for index, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
            if tensor is None and name == "importances":
                continue
            if tensor is None or param is None:
                raise TypeError(f"{name}[{index}] must be a tensor but is None: only an importance may be None")
            if tensor.shape != param.shape:
                raise ValueError(
                    f"{name}[{index}] must have its parameter's shape {tuple(param.shape)} but has "
                    f"{tuple(tensor.shape)}"
                )
            if tensor.device != param.device:
                raise ValueError(
                    f"{name}[{index}] must be on its parameter's device {param.device} but is on {tensor.device}: "
                    f"move it with .to()"
                )
            if not tensor.dtype.is_floating_point:
                raise TypeError(f"{name}[{index}] must have a floating dtype but has {tensor.dtype}")


@torch.no_grad()
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
    weight_decay: float = 0.0,
    site: str = "update",
) -> None:
    """One AdamW step on many tensors in place, softly masked by 1 - importance.

    site "update": Adam's whole step, weight decay included, is scaled by (1 - I); "gradient": g * (1 - I) enters Adam
    and its moments. An importance may be None: plain AdamW. Lists are equally long, tensors of one entry have one
    shape and device; `step` counts from 1. Raises ValueError, TypeError, and BackendUnavailable for a forced backend.
    """
    check_choice("site", site, SITES)
    if step < 1:
        raise ValueError(f"step counts from 1 but is {step}")
    lists = (list(params), list(grads), list(exp_avgs), list(exp_avg_sqs), list(importances))
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "importances")
    _check_lists(dict(zip(names, lists, strict=True)))
    for device, dtype in sorted({(param.device, param.dtype) for param in lists[0]}, key=str):
        chosen = [i for i, param in enumerate(lists[0]) if param.device == device and param.dtype == dtype]
        backend = select("soft_masked_adamw_", device, dtype)
        group = ([tensors[i] for i in chosen] for tensors in lists)
        _step_operator(*group, float(step), float(lr), beta1, beta2, eps, weight_decay, site, backend)
