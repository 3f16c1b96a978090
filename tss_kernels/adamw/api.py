"""soft_masked_adamw_: the registered operators, and the choice of a backend by device and dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tss_kernels.adamw.arguments import Lists, Options, check_lists, checked_number, checked_options
from tss_kernels.backends.dispatch import BackendUnavailable, forced_backend, implementation, select
from tss_kernels.backends.registry import why_not
from tss_kernels.operators import implement
from tss_kernels.tensors import count_writes

# Backends that read the step number and the learning rate on the device.
CAPTURABLE = ("cuda", "reference")
# Dtypes in which the device reads a step number and a learning rate.
STEP_DTYPES = (torch.float32, torch.float64, torch.int64)
LR_DTYPES = (torch.float32, torch.float64)


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
    implementation("soft_masked_adamw_", backend).soft_masked_adamw_(
        params, grads, exp_avgs, exp_avg_sqs, importances,
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, site=site,
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
) -> None:
    """Take one AdamW step on many tensors in place, softly masked by 1 - importance.

    All lists have the same length; the tensors of one entry have one shape, one device and floating dtypes. What is
    written (params, exp_avgs, exp_avg_sqs) must not share memory with itself or with what is read.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: as torch.optim.AdamW keeps them.
        importances: in [0, 1], or None for plain AdamW.
        step: a finite number, at least 1. If it is a 0-dim tensor (or one per parameter) on the parameters' device,
            with lr a number or such a tensor, both are read on the device, so that a CUDA graph can contain the step;
            their values are then not checked.
        lr, eps, weight_decay: finite and at least 0.
        beta1, beta2: in [0, 1).
        site: "update" scales Adam's whole step, weight decay included, by (1 - I); with "gradient", g * (1 - I) enters
            Adam and its moments.

    Raises:
        TypeError, ValueError: names the argument and what it should be, before anything is written.
        BackendUnavailable: a forced backend cannot run it.
    """
    options = checked_options(beta1, beta2, eps, weight_decay, site)
    lists = Lists(list(params), list(grads), list(exp_avgs), list(exp_avg_sqs), list(importances))
    if isinstance(step, torch.Tensor | list | tuple):
        prepared_on_device(lists, step, lr, options)()
    else:
        number, rate = checked_number("step", step), checked_number("lr", lr)
        prepared(lists, options)(number, rate)


def prepared(lists: Lists, options: Options) -> Callable[[float, float], None]:
    """Check everything but step number and lr; return the step as a function of the two, which must be checked already.

    Raises as soft_masked_adamw_ does.
    """
    memory = check_lists(lists)
    groups = [(select("soft_masked_adamw_", *kind), chosen) for kind, chosen in _groups(lists)]

    def take(step: float, lr: float) -> None:
        if memory is not None and groups[0][0] == "native":
            # Plain tensors skip PyTorch's dispatcher, which would inspect each of them.
            implementation("soft_masked_adamw_", "native").step_of_plain(lists, memory, step, lr, options)
        else:
            for backend, chosen in groups:
                _step_operator(*lists.some(chosen), step, lr, *options, backend)
        count_writes(lists.written())

    return take


def prepared_on_device(
    lists: Lists, step: torch.Tensor | Sequence[torch.Tensor], lr: float | torch.Tensor, options: Options
) -> Callable[[], None]:
    """Prepare a step whose number (one, or one per parameter) and lr are read on the device when it is taken."""
    check_lists(lists)
    steps = [step] * len(lists.params) if isinstance(step, torch.Tensor) else list(step)
    _check_numbers(lists.params, steps, lr)
    groups = [(kind[0], _capturable_backend(*kind), chosen) for kind, chosen in _groups(lists)]

    def take() -> None:
        for device, backend, chosen in groups:
            counted = [_scalar(steps[i], device, STEP_DTYPES) for i in chosen]
            _capturable_operator(*lists.some(chosen), counted, _scalar(lr, device, LR_DTYPES), *options, backend)
        count_writes(lists.written())

    return take


def _groups(lists: Lists) -> list[tuple[tuple[torch.device, torch.dtype], Sequence[int]]]:
    """Group the parameters, as indices into the lists, by device and dtype."""
    kinds = [(param.device, param.dtype) for param in lists.params]
    different = set(kinds)
    if len(different) == 1:
        return [(kinds[0], range(len(kinds)))]
    return [(kind, [i for i, own in enumerate(kinds) if own == kind]) for kind in sorted(different, key=str)]


def _scalar(value: float | torch.Tensor, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
    """Return the value on the device, in one of the dtypes; a number by a fill there, which CUDA graphs allow."""
    if not isinstance(value, torch.Tensor):
        return torch.full((), value, dtype=torch.float64, device=device)
    # One learning rate may serve parameters on several devices.
    value = value.to(device, value.dtype if value.dtype in dtypes else torch.float64)
    return value if value.dim() == 0 else value.reshape(())


def _check_numbers(params: list[torch.Tensor], steps: list[torch.Tensor], lr: float | torch.Tensor) -> None:
    """Check the step number (one, or one per parameter) and lr: one element each, on the parameters' device."""
    if len(steps) != len(params):
        raise ValueError(f"step must be one tensor or one per parameter, {len(params)}, but there are {len(steps)}")
    named: list[tuple[str, Any, torch.Tensor]] = [
        (f"step[{i}]", step, param) for i, (step, param) in enumerate(zip(steps, params, strict=True))
    ]
    if not isinstance(lr, torch.Tensor) or (lr.is_cpu and not torch.compiler.is_compiling()):
        checked_number("lr", lr)
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
    """Return the forced backend if it reads numbers on the device; if none is forced, the first such that can run."""
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
