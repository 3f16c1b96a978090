"""gated_linear: forward, both gradients alone, and forward and backward together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.functional import linear

import tss_kernels
from bench.cases import rivals
from bench.cases.sizes import Draw, Sizes, gradients, late_compiled
from bench.core.case import Case, Cost, Inputs, Outputs, Precision, Role, Variant, by_backends

Product = Callable[[Inputs], torch.Tensor]
# Operation -> its outputs; "d" + name is the gradient of the input of this name.
OPERATIONS = {
    "gated_linear forward": ("y",),
    "gated_linear dX": ("dx",),
    "gated_linear dS": ("dscores",),
    "gated_linear forward+backward": ("y", "dx", "dscores"),
}


def draw(sizes: Sizes, rows: int, in_features: int, out_features: int, seed: int) -> Inputs:
    """Draw inputs with about half the gates on. "keep" is 1 - importance, precomputed for rivals."""
    random = Draw(sizes, seed)
    inputs: Inputs = {
        "x": random.normal(rows, in_features),
        "dy": random.normal(rows, out_features),
        "weight": random.normal(out_features, in_features, scale=0.02),
        "scores": random.normal(out_features, in_features, dtype=torch.float32),
        "importance": random.unit(out_features, in_features),
    }
    inputs["keep"] = 1 - inputs["importance"]
    inputs["packed"] = tss_kernels.pack_gates(inputs["scores"])
    return inputs


def formula(names: tuple[str, ...], t: Inputs, precision: Precision) -> Outputs:
    """Compute the named outputs, of all those of these cases."""
    dtype, wide = precision
    x, dy, weight = (t[name].to(dtype) for name in ("x", "dy", "weight"))
    masked = torch.where(t["scores"] >= 0, weight, 0)
    result = torch.float64 if dtype == torch.float64 else torch.float32

    def dscores() -> torch.Tensor:
        product = (dy.to(wide).T @ x.to(wide)) * weight.to(wide)
        return product.to(result) * (1 - t["importance"].to(result))

    made = {"y": lambda: linear(x, masked), "dx": lambda: dy @ masked, "dscores": dscores}
    return {name: made[name]() for name in names}


def bind(outputs: tuple[str, ...], product: Product, t: Inputs) -> Callable[[], Outputs]:
    """Bind a product to inputs: return a call for these outputs; without "y", only gradients, from a retained graph."""
    trained = tuple(name[1:] for name in outputs if name != "y")
    leaves = t | {name: t[name].detach().requires_grad_() for name in trained}

    def forward() -> Outputs:
        with torch.no_grad():
            return {"y": product(leaves)}

    def both() -> Outputs:
        y = product(leaves)
        return {"y": y} | gradients(y, trained, leaves)

    if not trained:
        return forward
    if "y" in outputs:
        return both
    kept = product(leaves)
    return lambda: gradients(kept, trained, leaves, retain_graph=True)


def ours(t: Inputs) -> torch.Tensor:
    """Compute the product with this package."""
    return tss_kernels.gated_linear(t["x"], t["weight"], t["scores"], importance=t["importance"])


def ungated(t: Inputs) -> torch.Tensor:
    """Compute only the product."""
    return linear(t["x"], t["weight"])


def ungated_bind(outputs: tuple[str, ...], product: Product) -> Callable[[Inputs], Callable[[], Outputs]]:
    """Return `bind` with the gradient of the weight instead of that of the scores."""
    return partial(bind, tuple("dweight" if name == "dscores" else name for name in outputs), product)


def eager(t: Inputs) -> torch.Tensor:
    """Compute the product as a user would write it."""
    return rivals.eager_linear(t["x"], t["weight"], t["scores"], t["keep"])


def _materialised(t: Inputs) -> torch.Tensor:
    return rivals.materialised_linear(t["x"], t["weight"], t["scores"], t["keep"])


def cost(sizes: Sizes, outputs: tuple[str, ...], rows: int, in_features: int, out_features: int) -> Cost:
    """Count bytes and operations, forward as `explain` does.

    For a gradient, gates are bits, and importance and score gradient are float32.
    """
    counted, size, weights = (
        told(sizes, rows, in_features, out_features),
        sizes.dtype.itemsize,
        in_features * out_features,
    )
    shared = size * rows * (in_features + out_features) + size * weights
    moved = {"y": counted.bytes, "dx": shared + weights // 8, "dscores": shared + 8 * weights}
    return Cost(sum(moved[name] for name in outputs), len(outputs) * counted.flops)


def told(sizes: Sizes, rows: int, in_features: int, out_features: int) -> tss_kernels.Explanation:
    """Explain what the forward pass runs and costs."""
    weight = sizes.like(out_features, in_features)
    scores = sizes.like(out_features, in_features, dtype=torch.float32)
    return tss_kernels.explain("gated_linear", sizes.like(rows, in_features), weight, scores)


def case(sizes: Sizes, operation: str, rows: int, features: tuple[int, int], *, compiled: bool = True) -> Case:
    """Return the case of one operation at one shape; compiled: with a compiled rival."""
    outputs, late = OPERATIONS[operation], late_compiled(rivals.eager_linear, sizes)
    others: list[tuple[str, Role, Product]] = [("eager", "rival", eager)]
    if "y" in outputs:  # for a gradient alone every variant has saved the masked weight
        others.insert(0, ("materialise", "rival", _materialised))
    if "y" in outputs and compiled:
        others.append(("compile", "rival", lambda t: late()(t["x"], t["weight"], t["scores"], t["keep"])))
    variants = (
        *by_backends(told(sizes, rows, *features), sizes.device, Variant("tss", "ours", partial(bind, outputs, ours))),
        Variant("ungated", "floor", ungated_bind(outputs, ungated)),
        *(Variant(name, role, partial(bind, outputs, product)) for name, role, product in others),
    )
    return Case(
        operation, {"rows": rows, "in": features[0], "out": features[1]}, sizes.dtype,
        partial(draw, sizes, rows, *features), partial(formula, outputs), variants,
        cost(sizes, outputs, rows, *features),
    )  # fmt: skip


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield every operation at every shape, the most informative numbers of rows first."""
    for rows in sizes.rows:
        for features in sizes.features:
            for operation in OPERATIONS:
                yield case(sizes, operation, rows, features, compiled=sizes.compiles(rows))
