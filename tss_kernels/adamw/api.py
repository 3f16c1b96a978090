"""Soft-masked AdamW: checks and the registered operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from tss_kernels import checks, dispatch
from tss_kernels.operators import register

SITES = ("update", "gradient")


def check_site(owner: str, site: str) -> None:
    """Raise ValueError unless `site` is "update" or "gradient"."""
    if site not in SITES:
        raise ValueError(f"{owner}: site must be 'update' or 'gradient', got {site!r}")


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
    dispatch.load("soft_masked_adamw_", backend).soft_masked_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        importances,
        step=step,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        site=site,
    )


def _step_fake(*_: object) -> None:
    return None


_step_op = register(
    "soft_masked_adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
    " Tensor?[] importances, float step, float lr, float beta1, float beta2, float eps, float weight_decay, str site,"
    " str backend) -> ()",
    _step,
    _step_fake,
)


def _check_lists(
    params: Sequence[torch.Tensor],
    lists: dict[str, Sequence[torch.Tensor | None]],
) -> None:
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(
                f"soft_masked_adamw_: {name} must be as long as params, got {len(tensors)} and {len(params)}"
            )
        for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
            checks.check_same_shape("soft_masked_adamw_", f"{name}[{i}]", tensor, f"params[{i}]", param)
            checks.check_same_device("soft_masked_adamw_", **{f"params[{i}]": param, f"{name}[{i}]": tensor})


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
    site: Literal["update", "gradient"] = "update",
) -> None:
    """One AdamW step on lists of tensors, in place, softly masked by importance.

    With site "gradient", g (1 - I) enters Adam (TSS, eq. of the soft mask), where it nearly cancels: a constant factor
    scales m and sqrt(v) alike. With site "update", Adam's whole step, decay included, is scaled by (1 - I).

    Args:
        params, grads, exp_avgs, exp_avg_sqs: as many tensors each, of equal shapes; all but grads are changed.
        importances: like params, in [0, 1]; None for a parameter without a soft mask.
        step: the number of this step, from 1.
        lr, beta1, beta2, eps, weight_decay: as in `torch.optim.AdamW`.
        site: where the soft mask acts.

    Raises:
        ValueError: lists, shapes or devices that do not fit, an unknown site, a step below 1.
        BackendUnavailable: a forced backend that cannot run this.
    """
    check_site("soft_masked_adamw_", site)
    if step < 1:
        raise ValueError(f"soft_masked_adamw_: step counts from 1, got {step}")
    _check_lists(params, {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "importances": importances})
    if not params:
        return
    backend = dispatch.backend_for("soft_masked_adamw_", params[0].device.type, params[0].dtype)
    _step_op(
        list(params),
        list(grads),
        list(exp_avgs),
        list(exp_avg_sqs),
        list(importances),
        float(step),
        float(lr),
        beta1,
        beta2,
        eps,
        weight_decay,
        site,
        backend,
    )
