"""soft_masked_adamw_: checks and the registered operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tss_kernels.checks import check_choice, check_device, check_packed
from tss_kernels.dispatch import implementation, select
from tss_kernels.operators import count_writes, implement

SITES = ("update", "gradient")


def _step(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    importances: list[torch.Tensor | None],
    packed: list[torch.Tensor],
    gated: list[int],
    thresholds: list[float],
    flips: torch.Tensor | None,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    site: str,
    backend: str,
) -> None:
    # Functionalization knows no changed list with None in it: `gated` says whose gates those in `packed` are.
    gates: list[torch.Tensor | None] = [None] * len(params)
    for index, bits in zip(gated, packed, strict=True):
        gates[index] = bits
    implementation("adamw", backend).soft_masked_adamw_(
        params, grads, exp_avgs, exp_avg_sqs, importances,
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, site=site,
        packed=gates, thresholds=thresholds, flips=flips,
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


def _check_gates(
    params: list[torch.Tensor], packed: list[torch.Tensor | None], thresholds: list[float], flips: torch.Tensor | None
) -> None:
    """One packed entry and one threshold per parameter, packed gates fit float32 matrices, flips counts them all."""
    for name, values in (("packed", packed), ("thresholds", thresholds)):
        if len(values) != len(params):
            raise ValueError(f"{name} must have one entry per parameter, {len(params)}, but has {len(values)}")
    for index, (param, bits) in enumerate(zip(params, packed, strict=True)):
        if bits is None:
            continue
        if param.dim() != 2 or param.dtype != torch.float32:
            raise ValueError(
                f"packed[{index}] needs a float32 matrix (out, in), but its parameter is {param.dtype} of shape "
                f"{tuple(param.shape)}: pass None for it"
            )
        check_packed(bits, param)
        if flips is not None:
            check_device("flips", flips, param)
    if flips is not None and (flips.dtype != torch.int64 or flips.shape != (len(params),)):
        raise ValueError(
            f"flips must be int64 with one entry per parameter, ({len(params)},), but is {flips.dtype} of shape "
            f"{tuple(flips.shape)}"
        )


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
    packed: Sequence[torch.Tensor | None] | None = None,
    thresholds: Sequence[float] | float = 0.0,
    flips: torch.Tensor | None = None,
) -> None:
    """One AdamW step on many tensors in place, softly masked by 1 - importance.

    site "update": Adam's whole step, weight decay included, is scaled by (1 - I); "gradient": g * (1 - I) enters Adam
    and its moments. An importance may be None: plain AdamW. Lists are equally long, tensors of one entry have one
    shape and device; `step` counts from 1.
    packed: for each parameter None or, if it is a float32 matrix (out, in), uint8 (out, ceil(in / 8)), overwritten with
    the gates `parameter >= threshold` after the step as by pack_gates; thresholds: one, or one per parameter.
    flips: int64, an entry per parameter, to which the number of gates of `packed` that this step changed is added.
    Raises ValueError, TypeError, and BackendUnavailable for a forced backend.
    """
    check_choice("site", site, SITES)
    if step < 1:
        raise ValueError(f"step counts from 1 but is {step}")
    lists = (list(params), list(grads), list(exp_avgs), list(exp_avg_sqs), list(importances))
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "importances")
    _check_lists(dict(zip(names, lists, strict=True)))
    count = len(lists[0])
    gates: list[torch.Tensor | None] = [None] * count if packed is None else list(packed)
    bounds = [float(thresholds)] * count if isinstance(thresholds, int | float) else list(map(float, thresholds))
    _check_gates(lists[0], gates, bounds, flips)
    scalars = (float(step), float(lr), beta1, beta2, eps, weight_decay, site)
    for device, dtype in sorted({(param.device, param.dtype) for param in lists[0]}, key=str):
        chosen = [i for i, param in enumerate(lists[0]) if param.device == device and param.dtype == dtype]
        _step_some(chosen, (*lists, gates, bounds), flips, scalars, select("soft_masked_adamw_", device, dtype))
    written = [*lists[0], *lists[2], *lists[3], *(bits for bits in gates if bits is not None)]
    count_writes(written if flips is None else [*written, flips])


def _step_some(
    chosen: list[int], lists: tuple[list[Any], ...], flips: torch.Tensor | None, scalars: tuple[Any, ...], backend: str
) -> None:
    """The operator on some of the parameters: those of one device and dtype."""
    *tensors, gates, thresholds = ([entries[i] for i in chosen] for entries in lists)
    gated = [entry for entry, bits in enumerate(gates) if bits is not None]
    counted = None
    if flips is not None and gated:
        counted = flips if len(chosen) == len(flips) else flips.new_zeros(len(chosen))
    _step_operator(*tensors, [gates[entry] for entry in gated], gated, thresholds, counted, *scalars, backend)
    if counted is not None and counted is not flips:
        for entry in gated:
            flips[chosen[entry]] += counted[entry]  # type: ignore[index]
