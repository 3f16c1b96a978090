"""Cost of a task's end: the importance pass over its batches, against a training epoch over the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.cases.models import TASK, Setting, adapters_replaced, batch_for, learning
from bench.cases.sizes import Sizes
from bench.cases.step import eager, instead_of, norm_failure, one_step, settings
from bench.core.case import Case, Inputs, Outputs, Variant

BATCHES = 4


def _draw(setting: Setting, seed: int) -> Inputs:
    model = learning(setting)
    words = model.config.vocab_size
    return {"model": model, "batches": [batch_for(setting, words, seed=i) for i in range(BATCHES)]}


def _raw(t: Inputs) -> dict[str, torch.Tensor]:
    from tss.adapters import importance
    from tss.adapters.checkpointing import evaluation_mode

    handle = t["model"].tss
    with handle.using(TASK), evaluation_mode(t["model"]):
        return importance.raw_importance(handle.layers, (handle.loss(**batch) for batch in t["batches"]), "signed")


def _bind_importance(t: Inputs) -> Callable[[], Outputs]:
    from tss.adapters import importance

    def call() -> Outputs:
        importance.accumulate(t["model"].tss.layers, _raw(t), "tensor")
        return {}

    return call


def _bind_epoch(t: Inputs) -> Callable[[], Outputs]:
    optimizer = t["model"].tss.optimizer(score_lr=1e-4, head_lr=1e-4)

    def call() -> Outputs:
        for batch in t["batches"]:
            one_step(t["model"], optimizer, batch)
        return {}

    return call


def _by_hand(t: Inputs) -> torch.Tensor:
    """Compute the mean over batches of (dL/ds) * g with eager adapters, all layers in one vector."""
    model = t["model"]
    layers = list(model.tss.layers.values())
    total: torch.Tensor | float = 0.0
    model.eval()
    with adapters_replaced(model, instead_of(model, partial(eager, masked=False))):
        for batch in t["batches"]:
            grads = torch.autograd.grad(model(**batch).loss, [layer.scores for layer in layers])
            gated = [grad.double() * (layer.scores >= 0) for grad, layer in zip(grads, layers, strict=True)]
            total = total + torch.cat([one.flatten() for one in gated]) / len(t["batches"])
    model.train()
    assert isinstance(total, torch.Tensor)
    return total


def _check(setting: Setting, variant: Variant) -> str | None:
    model, words = learning(setting), learning(setting).config.vocab_size
    t = {"model": model, "batches": [batch_for(setting, words, rows=2, seed=i) for i in range(2)]}

    def ours() -> torch.Tensor:
        return torch.cat([raw.flatten().double() for raw in _raw(t).values()])

    found, own = ours(), _by_hand(t)
    model.double()
    exact, apart = ours(), _by_hand(t)
    model.to(setting.dtype)
    rounding = torch.finfo(setting.dtype).eps / 2
    return norm_failure("raw importance", rounding, found, own, exact, apart)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield the case of the first setting of the training step."""
    for setting in settings(sizes)[:1]:
        yield Case(
            f"importance pass, {setting.backbone}", setting.shape | {"batches": BATCHES}, setting.dtype,
            partial(_draw, setting), None,
            (
                Variant("tss", "ours", _bind_importance),
                Variant("training epoch", "floor", _bind_epoch, differs="it trains on the same batches"),
            ),
            check=partial(_check, setting), sets=1, cold=False,
            checked="float64: mean of (dL/ds) * g by hand, error at most twice that of eager adapters",
        )  # fmt: skip
