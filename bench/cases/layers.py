"""GatedAdapterLinear as programs use it, against an ungated layer: in training, and with a sealed task's gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.cases import gated_linear
from bench.cases.sizes import Sizes, gradients
from bench.core.case import Case, Inputs, Outputs, Variant, by_backends
from tss_kernels import GatedAdapterLinear, pack_gates

# Use -> the operation whose inputs, formula, cost and rivals it shares.
TRAINING, SEALED = "layer forward+backward", "layer forward, gates packed"
USES = {TRAINING: "gated_linear forward+backward", SEALED: "gated_linear forward"}


def _layer(t: Inputs) -> GatedAdapterLinear:
    (out_features, in_features), weight = t["weight"].shape, t["weight"]
    layer = GatedAdapterLinear(in_features, out_features, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.scores.copy_(t["scores"])
    layer.importance = t["importance"]
    return layer


def _bind_training(t: Inputs) -> Callable[[], Outputs]:
    layer, x = _layer(t), t["x"].detach().requires_grad_()
    leaves = t | {"x": x, "scores": layer.scores}

    def call() -> Outputs:
        y = layer(x)
        return {"y": y} | gradients(y, ("x", "scores"), leaves)

    return call


def _bind_sealed(t: Inputs) -> Callable[[], Outputs]:
    layer = _layer(t)
    layer.set_packed(pack_gates(t["scores"]))
    return gated_linear.bind(("y",), lambda t: layer(t["x"]), t)


def _bind_module(training: bool, t: Inputs) -> Callable[[], Outputs]:
    """Bind the module that a gated layer replaces."""
    out_features, in_features = t["weight"].shape
    module = torch.nn.Linear(in_features, out_features, bias=False, device="meta")
    module.weight = torch.nn.Parameter(t["weight"].detach())
    x = t["x"].detach().requires_grad_()
    leaves = t | {"x": x, "weight": module.weight}

    def call() -> Outputs:
        y = module(x)
        return {"y": y} | gradients(y, ("x", "weight"), leaves)

    return call if training else gated_linear.bind(("y",), lambda t: module(t["x"]), t)


def case(sizes: Sizes, use: str, rows: int, features: tuple[int, int]) -> Case:
    """Return the case of one use at one shape."""
    like = gated_linear.case(sizes, USES[use], rows, features, compiled=False)
    told, training = gated_linear.told(sizes, rows, *features), use == TRAINING
    rivals = tuple(one for one in like.variants if one.name in ("ungated", "eager"))
    variants = (
        *by_backends(told, sizes.device, Variant("tss", "ours", _bind_training if training else _bind_sealed)),
        Variant("nn.Linear", "floor", partial(_bind_module, training), differs="ungated, called as a module"),
        *rivals,
    )
    return Case(use, like.shape, sizes.dtype, like.draw, like.formula, variants, like.cost)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield both uses at every shape."""
    for rows in sizes.rows:
        for features in sizes.features:
            for use in USES:
                yield case(sizes, use, rows, features)
