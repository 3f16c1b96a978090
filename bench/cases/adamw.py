"""soft_masked_adamw_ at both sites, against PyTorch's AdamW with a separate multiply, and its fused AdamW unmasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import tss_kernels
from bench.cases.sizes import Draw, Sizes
from bench.core.case import Case, Cost, Inputs, Outputs, Precision, Variant, by_backends

STEP = 10
LARGE = 10**7  # scores above which one set of inputs is far larger than any cache
HYPER: dict[str, float] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01}
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "importances")
Shapes = tuple[tuple[int, int], ...]


def _draw(sizes: Sizes, shapes: Shapes, seed: int) -> Inputs:
    random = Draw(sizes, seed)

    def normal(scale: float) -> list[torch.Tensor]:
        return [random.normal(*shape, dtype=torch.float32, scale=scale) for shape in shapes]

    return {
        "params": normal(1.0), "grads": normal(1e-3), "exp_avgs": normal(1e-3),
        "exp_avg_sqs": [tensor.square_() for tensor in normal(1e-3)],
        "importances": [random.unit(*shape) for shape in shapes],
    }  # fmt: skip


def _changed(t: Inputs) -> Outputs:
    return {
        f"{name}[{i}]": tensor for name in ("params", "exp_avgs", "exp_avg_sqs") for i, tensor in enumerate(t[name])
    }


def _formula(site: str, t: Inputs, precision: Precision) -> Outputs:
    """Compute AdamW written out, one tensor at a time."""
    dtype, (beta1, beta2) = precision.dtype, (HYPER["beta1"], HYPER["beta2"])
    result: dict[str, list[torch.Tensor]] = {"params": [], "exp_avgs": [], "exp_avg_sqs": []}
    for p, g, m, v, importance in zip(*(t[name] for name in LISTS), strict=True):
        p, g, m, v, keep = p.to(dtype), g.to(dtype), m.to(dtype), v.to(dtype), 1 - importance.to(dtype)
        if site == "gradient":
            g = g * keep
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        change = HYPER["lr"] * (m / (1 - beta1**STEP)) / ((v / (1 - beta2**STEP)).sqrt() + HYPER["eps"])
        change = change + HYPER["lr"] * HYPER["weight_decay"] * p
        result["params"].append(p - (change * keep if site == "update" else change))
        result["exp_avgs"].append(m)
        result["exp_avg_sqs"].append(v)
    return _changed(result)


def _bind_ours(site: str, t: Inputs) -> Callable[[], Outputs]:
    lists, changed = [t[name] for name in LISTS], _changed(t)

    def call() -> Outputs:
        tss_kernels.soft_masked_adamw_(*lists, step=STEP, **HYPER, site=site)
        return changed

    return call


FORMS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "eager": {"foreach": False},
}


def _torch_optimizer(form: str, t: Inputs) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """Create PyTorch's AdamW in one of its forms, with the state of these inputs, before step number STEP."""
    parameters = [torch.nn.Parameter(tensor) for tensor in t["params"]]
    optimizer = torch.optim.AdamW(
        parameters, HYPER["lr"], (HYPER["beta1"], HYPER["beta2"]), HYPER["eps"], HYPER["weight_decay"], **FORMS[form]
    )
    for i, parameter in enumerate(parameters):
        parameter.grad = t["grads"][i]
        optimizer.state[parameter] = {
            "step": torch.tensor(float(STEP - 1), device=parameter.device),
            "exp_avg": t["exp_avgs"][i],
            "exp_avg_sq": t["exp_avg_sqs"][i],
        }
    return optimizer, parameters


def _bind_unmasked(t: Inputs) -> Callable[[], Outputs]:
    (optimizer, _), changed = _torch_optimizer("fused", t), _changed(t)

    def call() -> Outputs:
        optimizer.step()
        return changed

    return call


def _bind_multiply(site: str, form: str, t: Inputs) -> Callable[[], Outputs]:
    """Bind PyTorch's step with gradients multiplied by 1 - I before it, or the change multiplied by 1 - I after it."""
    optimizer, parameters = _torch_optimizer(form, t)
    values: list[Any] = [parameter.detach() for parameter in parameters]
    keeps, changed = [1 - importance for importance in t["importances"]], _changed(t)

    def gradient() -> Outputs:
        for parameter, grad in zip(parameters, torch._foreach_mul(t["grads"], keeps), strict=True):
            parameter.grad = grad
        optimizer.step()
        return changed

    def update() -> Outputs:
        before = [value.clone() for value in values]
        optimizer.step()
        torch._foreach_lerp_(values, before, t["importances"])
        return changed

    return update if site == "update" else gradient


def case(name: str, sizes: Sizes, shapes: Shapes, site: str) -> Case:
    """Return the case of one step over tensors of these shapes."""
    lists = [[sizes.written(*shape, dtype=torch.float32) for shape in shapes] for _ in range(5)]
    told = tss_kernels.explain("soft_masked_adamw_", *lists, step=STEP, **HYPER)
    scores = sum(a * b for a, b in shapes)
    return Case(
        f"soft_masked_adamw_ {site}, {name}", {"tensors": len(shapes), "scores": scores}, torch.float32,
        partial(_draw, sizes, shapes), partial(_formula, site),
        (
            *by_backends(told, sizes.device, Variant("tss", "ours", partial(_bind_ours, site))),
            Variant("AdamW fused, no mask", "floor", _bind_unmasked),
            *(
                # after PyTorch's step the change is partly undone: one more rounding of the parameters
                Variant(
                    f"AdamW {form} + multiply", "rival", partial(_bind_multiply, site, form),
                    rounds_more=site == "update",
                )
                for form in FORMS
            ),
        ),
        Cost(told.bytes, 0), sets=1 if scores > LARGE else 3,
    )  # fmt: skip


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield a case for every number of scores; both sites for the first two, else only "update"."""
    for number, (name, shapes) in enumerate(sizes.scores.items()):
        for site in ("update", "gradient") if number < 2 else ("update",):
            yield case(name, sizes, shapes, site)
