"""GatedAdapterLinear as programs use it, against an ungated layer: in training after every step, and in inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.measure import rivals
from bench.measure.case import Case, Inputs, Outputs, Variant, by_backends
from bench.measure.cases import gated_linear
from bench.measure.cases.sizes import Sizes, gradients
from tss_kernels import GatedAdapterLinear, pack_gates

TRAINING, INFERENCE = "layer forward+backward after a step", "layer forward, gates fixed"


def _layer(t: Inputs) -> GatedAdapterLinear:
    out_features, in_features = t["weight"].shape
    layer = GatedAdapterLinear(
        in_features, out_features, bias=False, device=t["weight"].device, dtype=t["weight"].dtype
    )
    with torch.no_grad():
        layer.weight.copy_(t["weight"])
        layer.scores.copy_(t["scores"])
    layer.importance = t["importance"]
    return layer


def _bind_inference(t: Inputs) -> Callable[[], Outputs]:
    layer = _layer(t)
    layer.set_packed(pack_gates(layer.scores))
    return gated_linear.bind_forward(lambda t: layer(t["x"]), t)


def _bind_training(t: Inputs) -> Callable[[], Outputs]:
    """As after a step of SoftMaskedAdamW: the scores have changed, and the step has left their gates behind as bits.

    What a layer keeps from call to call must not count, so the bits are another tensor at every call.
    """
    layer, x = _layer(t), t["x"].detach().requires_grad_()
    leaves = t | {"x": x, "scores": layer.scores}
    gates = itertools.cycle([pack_gates(layer.scores) for _ in range(2)])

    def call() -> Outputs:
        torch.autograd.graph.increment_version(layer.scores)
        layer.scores.keep_gates(layer.threshold, next(gates))
        y = layer(x)
        return {"y": y} | gradients(y, ("x", "scores"), leaves)

    return call


def _module(t: Inputs) -> torch.nn.Linear:
    """The module that a gated layer replaces."""
    out_features, in_features = t["weight"].shape
    module = torch.nn.Linear(in_features, out_features, bias=False, device="meta")
    module.weight = torch.nn.Parameter(t["weight"].detach())
    return module


def _bind_module_inference(t: Inputs) -> Callable[[], Outputs]:
    module = _module(t)
    return gated_linear.bind_forward(lambda t: module(t["x"]), t)


def _bind_module_training(t: Inputs) -> Callable[[], Outputs]:
    module, x = _module(t), t["x"].detach().requires_grad_()
    leaves = t | {"x": x, "weight": module.weight}

    def call() -> Outputs:
        y = module(x)
        return {"y": y} | gradients(y, ("x", "weight"), leaves)

    return call


def _eager(t: Inputs) -> torch.Tensor:
    return rivals.eager_linear(t["x"], t["weight"], t["scores"], t["keep"])


# Use -> the operation whose inputs, formula and work are its own; ours; the ungated product; that as a module; how an
# eager one is bound.
USES = {
    TRAINING: (
        "gated_linear forward+backward", _bind_training, gated_linear.bind_floor_both, _bind_module_training,
        gated_linear.bind_both,
    ),
    INFERENCE: (
        "gated_linear forward", _bind_inference, gated_linear.ungated_forward, _bind_module_inference,
        gated_linear.bind_forward,
    ),
}  # fmt: skip


def case(sizes: Sizes, use: str, rows: int, features: tuple[int, int]) -> Case:
    """One use at one shape."""
    operation, ours, ungated, module, bind = USES[use]
    like = gated_linear.case(sizes, operation, rows, features)
    variants = (
        *by_backends("gated_linear", Variant("tss", "ours", ours)),
        Variant("ungated", "floor", ungated),
        Variant("nn.Linear", "floor", module, differs="ungated, called as a module"),
        Variant("eager", "rival", partial(bind, _eager)),
    )
    return Case(use, like.shape, sizes.dtype, like.draw, like.formula, variants, like.cost)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Both uses at every shape."""
    for rows in sizes.rows:
        for features in sizes.features:
            for use in USES:
                yield case(sizes, use, rows, features)
