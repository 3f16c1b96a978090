"""SoftMaskedAdamW: torch.optim.AdamW with importance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from tss_kernels.adamw.api import prepared, prepared_on_device
from tss_kernels.adamw.arguments import Lists, Options, checked_number, checked_options
from tss_kernels.validation import check_floating

UNSUPPORTED = ("amsgrad", "differentiable")


class SoftMaskedAdamW(torch.optim.Optimizer):
    """AdamW whose step (site "update") or gradient (site "gradient") is scaled by 1 - importance.

    Without importance it equals torch.optim.AdamW up to rounding. The state has AdamW's keys; importance is not part of
    `state_dict`: loading a state leaves it unchanged.

    Args:
        params, lr, betas, eps, weight_decay, maximize: as for torch.optim.AdamW. Use a weight_decay of 0 for scores.
        foreach, fused: accepted but ignored: a group is one operation anyway.
        capturable: keep each parameter's step count on its device, where lr may be a tensor too: nothing waits for the
            device, and a CUDA graph can contain the step.
        site: "update" or "gradient"; may differ between groups, as lr may.
        importance: parameter -> tensor of its shape in [0, 1], or None.

    Raises:
        TypeError, ValueError: names the argument and what it should be; also for amsgrad or differentiable.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        site: str = "update",
        importance: Mapping[torch.Tensor, torch.Tensor | None] | None = None,
    ) -> None:
        _refuse_unsupported({"amsgrad": amsgrad, "differentiable": differentiable})
        del foreach, fused
        self.importance: dict[torch.Tensor, torch.Tensor] = {}
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize, "site": site,
            "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)
        for parameter, tensor in (importance or {}).items():
            self.set_importance(parameter, tensor)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch's optimizers do; its options are checked first. Raises TypeError for DTensors."""
        options = {**self.defaults, **param_group}
        checked_number("lr", options["lr"])
        _options_of(options)
        super().add_param_group(param_group)
        if any(hasattr(param, "full_tensor") for param in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise TypeError(
                "SoftMaskedAdamW does not step sharded parameters (DTensors): leave gated layers out of fully_shard, "
                "for example with ignored_params, or use torch.optim.AdamW with layers that mask their gradients"
            )

    def set_importance(self, parameter: torch.Tensor, importance: torch.Tensor | None) -> None:
        """Set (without a copy) or, with None, remove the importance of a parameter of this optimizer.

        importance: of the parameter's shape, floating, in [0, 1]; moved to the parameter's device. Raises ValueError
        and TypeError.
        """
        if not any(parameter is own for group in self.param_groups for own in group["params"]):
            raise ValueError(
                f"the tensor of shape {tuple(parameter.shape)} is not a parameter of this optimizer: add it to a group"
            )
        if importance is None:
            self.importance.pop(parameter, None)
            return
        if not isinstance(importance, torch.Tensor):
            raise TypeError(
                f"importance must be a tensor but is {importance!r}, a {type(importance).__name__}: pass None for "
                "no importance"
            )
        if importance.shape != parameter.shape:
            raise ValueError(
                f"importance must have its parameter's shape {tuple(parameter.shape)} but has {tuple(importance.shape)}"
            )
        check_floating("importance", importance)
        self.importance[parameter] = importance.detach().to(parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient.

        Each group takes one `soft_masked_adamw_`, or one per step number if its parameters differ in their step counts.

        Raises:
            TypeError, ValueError, BackendUnavailable: before anything is written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Keyed by identity: looking up tensors takes longer than building these dicts.
        states = dict(zip(map(id, self.state), self.state.values(), strict=True))
        masks = dict(zip(map(id, self.importance), self.importance.values(), strict=True))
        self._check_masks(masks)
        for take in [self._prepared(group, states, masks) for group in self.param_groups]:
            take()
        return loss

    def _check_masks(self, masks: Mapping[int, torch.Tensor]) -> None:
        """Raise ValueError if parameters with importance were replaced by others, which nothing would mask."""
        own = {id(param) for group in self.param_groups for param in group["params"]} if masks else set()
        if gone := [key for key in masks if key not in own]:
            raise ValueError(
                f"{len(gone)} of {len(masks)} parameters with importance are no longer in a group of this optimizer, "
                "and what replaced them would be updated without it: call set_importance for the new parameters, and "
                "remove the old ones from optimizer.importance"
            )

    def _prepared(
        self, group: dict[str, Any], known: Mapping[int, dict[str, Any]], masks: Mapping[int, torch.Tensor]
    ) -> Callable[[], None]:
        """Return the step of a group as a function: everything is checked, and nothing is written yet."""
        options, capturable = _options_of(group), group["capturable"]
        params = [param for param in group["params"] if param.grad is not None]
        grads: list[Any] = [param.grad for param in params]
        found = [known.get(id(param)) for param in params]
        started = {i: _first_state(param, capturable) for i, param in enumerate(params) if not found[i]}
        states: list[Any] = [started.get(i, state) for i, state in enumerate(found)]
        steps = [state["step"] for state in states]
        lists = Lists(
            params,
            list(torch._foreach_neg(grads)) if group["maximize"] and grads else grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [masks.get(id(param)) for param in params],
        )
        numbers = [] if capturable else [step.item() + 1 for step in steps]
        if capturable:
            take = prepared_on_device(lists, steps, group["lr"], options)
        else:
            take = _by_numbers(lists, numbers, group["lr"], options)

        def counted() -> None:
            self.state.update((params[i], state) for i, state in started.items())
            if not steps:
                return
            if capturable:
                torch._foreach_add_(steps, 1)
            for step, number in zip(steps, numbers, strict=False):  # faster than torch._foreach_add_ on the CPU
                step.fill_(number)
            take()

        return counted

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "importance": self.importance}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state.get("param_groups", ()):
            _refuse_unsupported(group)
        super().__setstate__(state)
        for group in self.param_groups:  # a state of torch.optim.AdamW has no site
            group.setdefault("site", self.defaults["site"])
            group.setdefault("maximize", False)
            group.setdefault("capturable", False)


def _refuse_unsupported(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of torch.optim.AdamW that this one does not have."""
    for name in UNSUPPORTED:
        if options.get(name):
            raise ValueError(f"SoftMaskedAdamW has no {name}: leave it False or use torch.optim.AdamW")


def _options_of(group: Mapping[str, Any]) -> Options:
    """Return a group's options, checked."""
    betas = group["betas"]
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers but are {betas!r}: pass a pair such as (0.9, 0.999)")
    beta1, beta2 = betas
    return checked_options(beta1, beta2, group["eps"], group["weight_decay"], group["site"])


def _by_numbers(lists: Lists, numbers: list[float], lr: Any, options: Options) -> Callable[[], None]:
    """Return the step of parameters with their own step numbers, as one call per distinct number."""
    rate, take = checked_number("lr", lr), prepared(lists, options)
    different = sorted({checked_number("step", number) for number in numbers})
    if len(different) == 1:
        return partial(take, different[0], rate)
    some = [lists.some([i for i, own in enumerate(numbers) if own == number]) for number in different]
    parts = [partial(prepared(part, options), number, rate) for part, number in zip(some, different, strict=True)]

    def take_each() -> None:
        for part in parts:
            part()

    return take_each


def _first_state(parameter: torch.Tensor, on_device: bool) -> dict[str, torch.Tensor]:
    """Return the initial state: no steps, and moments of 0."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu"),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }
