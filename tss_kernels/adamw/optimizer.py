"""SoftMaskedAdamW: torch.optim.AdamW with importance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from tss_kernels.adamw.api import SITES, soft_masked_adamw_
from tss_kernels.backends.dispatch import implementation, select
from tss_kernels.tensors import empty_packed
from tss_kernels.validation import check_choice, check_floating

UNSUPPORTED = ("amsgrad", "differentiable")


def _check_at_least_0(name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must be one number but is a tensor of shape {tuple(value.shape)}: use groups")
    if not isinstance(value, int | float | torch.Tensor):
        raise TypeError(f"{name} must be a number but is {value!r}, a {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0 but is {value}")


def _wanted(parameter: Any) -> float | None:
    """The threshold of the gates that a parameter would have made by its step, None for most parameters."""
    return parameter.wants_gates() if hasattr(type(parameter), "wants_gates") else None


class SoftMaskedAdamW(torch.optim.Optimizer):
    """AdamW whose step (site "update") or gradient (site "gradient") is scaled by 1 - importance.

    Takes torch.optim.AdamW's arguments, and without importance does what that does, up to rounding. Any parameter may
    have an importance, a tensor of its shape in [0, 1]. `site`, like lr, may differ from group to group. The state has
    AdamW's keys; importance is not part of `state_dict`: it stays as set when a state is loaded. `foreach` and `fused`
    are accepted and change nothing: a group is one operation anyway. `capturable` keeps the number of each parameter's
    steps on its device, where lr may be a tensor too: nothing waits, and a CUDA graph can hold the step. Raises
    ValueError, TypeError.
    """

    # Version counters tell of its writes, and scores have their new gates from it: they need not forget them.
    counts_writes = True

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
        for name, asked in zip(UNSUPPORTED, (amsgrad, differentiable), strict=True):
            if asked:
                raise ValueError(f"SoftMaskedAdamW has no {name}: leave it False or use torch.optim.AdamW")
        del foreach, fused
        self.importance: dict[torch.Tensor, torch.Tensor] = {}
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize, "site": site,
            "capturable": capturable,
        }  # fmt: skip
        self._plans: dict[int, Any] = {}  # by the group, which lives as long as the optimizer
        super().__init__(params, defaults)
        for parameter, tensor in (importance or {}).items():
            self.set_importance(parameter, tensor)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as torch's optimizers do; its options are checked first."""
        options = {**self.defaults, **param_group}
        check_choice("site", options["site"], SITES)
        for name in ("lr", "eps", "weight_decay"):
            _check_at_least_0(name, options[name])
        for beta in options["betas"]:
            if not 0 <= beta < 1:
                raise ValueError(f"betas must be in [0, 1) but are {options['betas']}")
        super().add_param_group(param_group)

    def set_importance(self, parameter: torch.Tensor, importance: torch.Tensor | None) -> None:
        """Sets (without a copy) or, with None, removes the importance of a parameter of this optimizer.

        importance: parameter's shape, floating, in [0, 1]; moved to the parameter's device. Raises ValueError and
        TypeError.
        """
        if not any(parameter is own for group in self.param_groups for own in group["params"]):
            raise ValueError(
                f"the tensor of shape {tuple(parameter.shape)} is not a parameter of this optimizer: add it to a group"
            )
        if importance is None:
            self.importance.pop(parameter, None)
            return
        if importance.shape != parameter.shape:
            raise ValueError(
                f"importance must have its parameter's shape {tuple(parameter.shape)} but has {tuple(importance.shape)}"
            )
        check_floating("importance", importance)
        self.importance[parameter] = importance.detach().to(parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step: one soft_masked_adamw_ per group (and per step number, where parameters joined at other times)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["capturable"]:
                self._update_on_device(group)
                continue
            plan = self._plans.get(id(group))
            if plan is not None and plan.step(group, self.state, self.importance):
                continue
            self._plans.pop(id(group), None)
            due = self._due(group["params"])
            for number, params in due.items():
                self._update(params, number, group)
            self._plan(group, due)
        return loss

    def _plan(self, group: dict[str, Any], due: Mapping[float, list[torch.Tensor]]) -> None:
        """After a step of all parameters of a group: makes the next one shorter, where the CPU's kernel takes it."""
        params = group["params"]
        if len(due) != 1 or sum(map(len, due.values())) != len(params) or not params[0].is_cpu or True:
            return
        if select("soft_masked_adamw_", params[0].device, params[0].dtype) == "native":
            plan = implementation("soft_masked_adamw_", "plan").Plan.of(list(params), self.state, self.importance)
            if plan is not None:
                self._plans[id(group)] = plan

    def _due(self, parameters: Iterable[torch.Tensor]) -> dict[float, list[torch.Tensor]]:
        """The parameters that have a gradient, by the number of the step they take now; starts missing state."""
        due: dict[float, list[torch.Tensor]] = defaultdict(list)
        found = self._with_gradient(parameters, on_device=False)
        steps = [self.state[parameter]["step"] for parameter in found]
        if steps:  # a number would be made a tensor once for each of them
            torch._foreach_add_(steps, torch.ones(()), alpha=1)
        for parameter, step in zip(found, steps, strict=True):
            due[step.item()].append(parameter)
        return due

    def _with_gradient(self, parameters: Iterable[torch.Tensor], on_device: bool) -> list[torch.Tensor]:
        """The parameters that have a gradient; starts missing state."""
        found = [parameter for parameter in parameters if parameter.grad is not None]
        for parameter in found:
            if parameter.grad.is_sparse:  # type: ignore[union-attr]
                raise TypeError(f"the gradient of a {tuple(parameter.shape)} parameter is sparse: use a dense one")
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return found

    def _update_on_device(self, group: dict[str, Any]) -> None:
        """The step of a capturable group: its numbers are counted and read where the parameters are."""
        params = self._with_gradient(group["params"], on_device=True)
        if not params:
            return
        steps = [self.state[param]["step"] for param in params]
        torch._foreach_add_(steps, 1)
        for param in params:
            if hasattr(type(param), "forget_gates"):  # a graph that holds this step changes scores unseen
                param.forget_gates()  # type: ignore[operator]
        soft_masked_adamw_(
            params, *self._tensors(params, group), step=steps, lr=group["lr"],
            beta1=float(group["betas"][0]), beta2=float(group["betas"][1]), eps=group["eps"],
            weight_decay=group["weight_decay"], site=group["site"],
        )  # fmt: skip

    def _tensors(self, params: list[torch.Tensor], group: dict[str, Any]) -> tuple[list[Any], ...]:
        """Gradients, both averages and importances of the parameters."""
        return (
            [-param.grad if group["maximize"] else param.grad for param in params],  # type: ignore[misc, operator]
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [self.importance.get(param) for param in params],
        )

    def _update(self, params: list[torch.Tensor], number: float, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        # Scores that keep their gates have the new ones made by the step, in fresh memory: a backward pass to come
        # may hold those of before.
        thresholds = [_wanted(param) for param in params]
        packed = [
            None if threshold is None else empty_packed(param)
            for param, threshold in zip(params, thresholds, strict=True)
        ]
        soft_masked_adamw_(
            params,
            *self._tensors(params, group),
            step=number,
            lr=float(group["lr"]),
            beta1=float(beta1),
            beta2=float(beta2),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            site=group["site"],
            packed=packed,
            thresholds=[0.0 if threshold is None else threshold for threshold in thresholds],
        )
        for param, threshold, bits in zip(params, thresholds, packed, strict=True):
            if bits is not None:
                param.keep_gates(threshold, bits)  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "importance": self.importance}  # no plans: those are of these very tensors

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = {}
        for group in self.param_groups:  # a state of torch.optim.AdamW has no site
            group.setdefault("site", self.defaults["site"])
            group.setdefault("maximize", False)
            group.setdefault("capturable", False)
