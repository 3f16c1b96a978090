"""AdamW as an optimizer object, with a soft mask for any of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, overload

import torch

from tss_kernels import checks
from tss_kernels.adamw.api import check_site, soft_masked_adamw_


class SoftMaskedAdamW(torch.optim.Optimizer):
    """AdamW whose step on a parameter is scaled by (1 - importance); without importance it is `torch.optim.AdamW`.

    Importance is not part of `state_dict`: whoever accumulates it hands it over again after loading.

    Args:
        params: parameters or parameter groups; a group may have its own `site`.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`, but weight decay is 0 unless asked for, since decay
            moves entries whose gradient is masked.
        site: "update" scales Adam's whole step, "gradient" the gradient before it.
        importance: parameter -> tensor of its shape, in [0, 1].

    Raises:
        ValueError: a hyper-parameter out of range, an unknown site, an importance that fits no parameter.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        site: Literal["update", "gradient"] = "update",
        importance: Mapping[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        ranges = {"lr": lr >= 0, "eps": eps >= 0, "weight_decay": weight_decay >= 0}
        values = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        for name, fits in ranges.items():
            if not fits:
                raise ValueError(f"SoftMaskedAdamW: {name} must be at least 0, got {values[name]}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"SoftMaskedAdamW: betas must be in [0, 1), got {betas}")
        check_site("SoftMaskedAdamW", site)
        self._importance: dict[torch.Tensor, torch.Tensor] = {}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "site": site})
        for parameter, tensor in (importance or {}).items():
            self.set_importance(parameter, tensor)

    def set_importance(self, parameter: torch.Tensor, importance: torch.Tensor | None) -> None:
        """Mask this parameter's steps by `importance` from now on; None takes the mask away.

        Raises:
            ValueError: a parameter that is not in the optimizer; another shape or device.
        """
        if not any(parameter is known for group in self.param_groups for known in group["params"]):
            raise ValueError(f"set_importance: no parameter of this optimizer (shape {tuple(parameter.shape)})")
        checks.check_same_shape("set_importance", "importance", importance, "parameter", parameter)
        checks.check_same_device("set_importance", parameter=parameter, importance=importance)
        if importance is None:
            self._importance.pop(parameter, None)
        else:
            self._importance[parameter] = importance

    def importance_of(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """The importance that masks this parameter, or None."""
        return self._importance.get(parameter)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_importance": self._importance}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step on every parameter that has a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        by_step: dict[float, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise RuntimeError("SoftMaskedAdamW does not take sparse gradients; use a dense embedding gradient")
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["step"] = int(state["step"]) + 1
            by_step.setdefault(state["step"], []).append(parameter)
        beta1, beta2 = group["betas"]
        # Parameters that joined later have another bias correction; usually there is one list.
        for step, parameters in by_step.items():
            soft_masked_adamw_(
                parameters,
                [p.grad for p in parameters],  # type: ignore[misc]
                [self.state[p]["exp_avg"] for p in parameters],
                [self.state[p]["exp_avg_sq"] for p in parameters],
                [self._importance.get(p) for p in parameters],
                step=step,
                lr=float(group["lr"]),
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                site=group["site"],
            )
