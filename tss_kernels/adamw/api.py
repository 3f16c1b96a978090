"""soft_masked_adamw_: checks and the registered operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tss_kernels.backends.dispatch import BackendUnavailable, forced_backend, implementation, select
from tss_kernels.backends.registry import why_not
from tss_kernels.operators import implement
from tss_kernels.tensors import count_writes
from tss_kernels.validation import FLOATING, check_choice, check_device, check_floating, check_packed

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
    implementation("soft_masked_adamw_", backend).soft_masked_adamw_(
        params, grads, exp_avgs, exp_avg_sqs, importances,
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, site=site,
        packed=gates, thresholds=thresholds, flips=flips,
    )  # fmt: skip


def _capturable_step(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    importances: list[torch.Tensor | None],
    steps: list[torch.Tensor],
    lr: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    site: str,
    backend: str,
) -> None:
    implementation("soft_masked_adamw_", backend).soft_masked_adamw_capturable_(
        params, grads, exp_avgs, exp_avg_sqs, importances,
        steps=steps, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, site=site,
    )  # fmt: skip


_step_operator = implement("soft_masked_adamw_", _step)
_capturable_operator = implement("soft_masked_adamw_capturable_", _capturable_step)
# Backends that read the step's number and the learning rate on the device.
CAPTURABLE = ("cuda", "reference")
# What the device reads a step's number and a learning rate from.
STEP_DTYPES = (torch.float32, torch.float64, torch.int64)
LR_DTYPES = (torch.float32, torch.float64)


def _all_fit(lists: dict[str, Sequence[Any]]) -> bool:
    """Whether nothing is wrong, in few steps of Python: a step of many small tensors spends its time in checks."""
    params = lists["params"]
    try:
        shapes, devices = [param.shape for param in params], [param.device for param in params]
        for name, tensors in lists.items():
            if len(tensors) != len(params):
                return False
            if name == "importances":
                tensors = [p if tensor is None else tensor for tensor, p in zip(tensors, params, strict=True)]
            if [tensor.shape for tensor in tensors] != shapes or [tensor.device for tensor in tensors] != devices:
                return False
            if any(dtype not in FLOATING for dtype in {tensor.dtype for tensor in tensors}):
                return False
    except AttributeError:  # what is no tensor
        return False
    return True


def _check_lists(lists: dict[str, Sequence[torch.Tensor | None]]) -> None:
    """All lists are as long as params, and every tensor has its parameter's shape and device and a floating dtype."""
    params = lists["params"]
    if _all_fit(lists):
        return
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
            check_floating(f"{name}[{index}]", tensor)


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


def _plain(importance: torch.Tensor | None) -> torch.Tensor | None:
    """The importance with its values in memory: PyTorch resolves lazy negation, but not in lists that may hold None."""
    return importance.resolve_neg() if importance is not None and importance.is_neg() else importance


@torch.no_grad()
def soft_masked_adamw_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    importances: Sequence[torch.Tensor | None],
    *,
    step: float | torch.Tensor | Sequence[torch.Tensor],
    lr: float | torch.Tensor,
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
    step as a tensor without dimensions (or one per parameter) on the parameters' device, lr a number or such a tensor:
    both are read there, so that a CUDA graph can hold the step; gates are not emitted then.
    packed: for each parameter None or, if it is a float32 matrix (out, in), uint8 (out, ceil(in / 8)), overwritten with
    the gates `parameter >= threshold` after the step as by pack_gates; thresholds: one, or one per parameter.
    flips: int64, an entry per parameter, to which the number of gates of `packed` that this step changed is added.
    Raises ValueError, TypeError, and BackendUnavailable for a forced backend.
    """
    check_choice("site", site, SITES)
    if isinstance(step, int | float) and step < 1:
        raise ValueError(f"step counts from 1 but is {step}")
    lists = (list(params), list(grads), list(exp_avgs), list(exp_avg_sqs), list(map(_plain, importances)))
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "importances")
    _check_lists(dict(zip(names, lists, strict=True)))
    if not isinstance(step, int | float):
        if packed is not None or flips is not None:
            raise ValueError("gates are not emitted by a step whose number is a tensor: leave packed and flips out")
        options = (beta1, beta2, eps, weight_decay, site)
        _step_on_device(lists, step, lr, options)
        count_writes([*lists[0], *lists[2], *lists[3]])
        return
    count = len(lists[0])
    gates: list[torch.Tensor | None] = [None] * count if packed is None else list(packed)
    bounds = [float(thresholds)] * count if isinstance(thresholds, int | float) else list(map(float, thresholds))
    _check_gates(lists[0], gates, bounds, flips)
    scalars = (float(step), float(lr), beta1, beta2, eps, weight_decay, site)
    for device, dtype, chosen in _groups(lists[0]):
        _step_some(chosen, (*lists, gates, bounds), flips, scalars, select("soft_masked_adamw_", device, dtype))
    written = [*lists[0], *lists[2], *lists[3], *(bits for bits in gates if bits is not None)]
    count_writes(written if flips is None else [*written, flips])


def _groups(params: list[torch.Tensor]) -> list[tuple[torch.device, torch.dtype, Sequence[int]]]:
    """The parameters of each device and dtype, by their places in the list."""
    kinds = [(param.device, param.dtype) for param in params]
    different = set(kinds)
    if len(different) == 1:
        return [(*kinds[0], range(len(params)))]
    return [(*kind, [i for i, own in enumerate(kinds) if own == kind]) for kind in sorted(different, key=str)]


def _step_some(
    chosen: Sequence[int],
    lists: tuple[list[Any], ...],
    flips: torch.Tensor | None,
    scalars: tuple[Any, ...],
    backend: str,
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


def _step_on_device(
    lists: tuple[list[Any], ...],
    step: torch.Tensor | Sequence[torch.Tensor],
    lr: float | torch.Tensor,
    options: tuple[Any, ...],
) -> None:
    """The capturable operator on the parameters of each device and dtype."""
    count = len(lists[0])
    steps = [step] * count if isinstance(step, torch.Tensor) else list(step)
    _check_steps(lists[0], steps, lr)
    for device, dtype, chosen in _groups(lists[0]):
        tensors = ([entries[i] for i in chosen] for entries in lists)
        numbers = [_scalar(steps[i], device, STEP_DTYPES) for i in chosen]
        rate = _scalar(lr, device, LR_DTYPES)
        _capturable_operator(*tensors, numbers, rate, *options, _capturable_backend(device, dtype))


def _scalar(value: float | torch.Tensor, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
    """The value as a tensor on the device, of one of the dtypes; a number is filled in, which a CUDA graph can hold."""
    if not isinstance(value, torch.Tensor):
        return torch.full((), value, dtype=torch.float64, device=device)
    if value.dtype not in dtypes or value.device != device:
        value = value.to(device, value.dtype if value.dtype in dtypes else torch.float64)
    return value if value.dim() == 0 else value.reshape(())


def _check_steps(params: list[torch.Tensor], steps: list[torch.Tensor], lr: float | torch.Tensor) -> None:
    if len(steps) != len(params):
        raise ValueError(f"step must be one tensor or one per parameter, {len(params)}, but there are {len(steps)}")
    named = [(f"step[{i}]", step, param) for i, (step, param) in enumerate(zip(steps, params, strict=True))]
    if isinstance(lr, torch.Tensor) and params:
        named.append(("lr", lr, params[0]))
    for name, tensor, param in named:
        if not isinstance(tensor, torch.Tensor) or tensor.numel() != 1:
            raise TypeError(f"{name} must be a tensor of one number where step is a tensor, but is {tensor!r}")
        if tensor.device != param.device:
            raise ValueError(
                f"{name} must be on its parameter's device {param.device} but is on {tensor.device}: move it with .to()"
            )


def _capturable_backend(device: torch.device, dtype: torch.dtype) -> str:
    """The forced backend if it reads numbers on the device, else the first that does and can run."""
    forced = forced_backend()
    if forced is None:
        usable = device.type == "cuda" and why_not("cuda", "soft_masked_adamw_", device, dtype) is None
        return "cuda" if usable else "reference"
    chosen = select("soft_masked_adamw_", device, dtype)
    if chosen not in CAPTURABLE:
        raise BackendUnavailable(
            f"backend {chosen!r} was forced for soft_masked_adamw_, but step is a tensor, which it cannot read on the "
            f"device. Remedy: use one of {', '.join(CAPTURABLE)}, or give step as a number."
        )
    return chosen
