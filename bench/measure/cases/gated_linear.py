"""gated_linear: forward, both gradients alone, and forward and backward together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.functional import linear

import tss_kernels
from bench.measure import rivals
from bench.measure.case import Case, Cost, Inputs, Outputs, Precision, Variant, by_backends
from bench.measure.cases.sizes import Draw, Sizes, gradients, late_compiled
from tss_kernels.backends.dispatch import select
from tss_kernels.gated_linear.api import input_grad_operator, scores_grad_operator

Product = Callable[..., torch.Tensor]


def draw(sizes: Sizes, rows: int, in_features: int, out_features: int, seed: int) -> Inputs:
    """Random inputs; about half the gates on. "keep" is 1 - importance, which rivals get ready made."""
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


def only(names: tuple[str, ...], t: Inputs, precision: Precision) -> Outputs:
    """Those outputs that a case has, of all that any of these cases gives."""
    dtype, wide = precision
    x, dy, weight = (t[name].to(dtype) for name in ("x", "dy", "weight"))
    masked = torch.where(t["scores"] >= 0, weight, 0)
    result = torch.float64 if dtype == torch.float64 else torch.float32

    def dscores() -> torch.Tensor:
        product = (dy.to(wide).T @ x.to(wide)) * weight.to(wide)
        return product.to(result) * (1 - t["importance"].to(result))

    made = {"y": lambda: linear(x, masked), "dx": lambda: dy @ masked, "dscores": dscores}
    return {name: made[name]() for name in names}


def bind_forward(product: Callable[[Inputs], torch.Tensor], t: Inputs) -> Callable[[], Outputs]:
    """A product without gradients."""

    def call() -> Outputs:
        with torch.no_grad():
            return {"y": product(t)}

    return call


def bind_both(product: Callable[[Inputs], torch.Tensor], t: Inputs) -> Callable[[], Outputs]:
    """A product, and the gradients of x and of the scores."""
    leaves = t | {name: t[name].detach().requires_grad_() for name in ("x", "scores")}

    def call() -> Outputs:
        y = product(leaves)
        return {"y": y} | gradients(y, ("x", "scores"), leaves)

    return call


def bind_floor_both(t: Inputs) -> Callable[[], Outputs]:
    """The ungated product, and the gradients of x and of its weight."""
    leaves = t | {name: t[name].detach().requires_grad_() for name in ("x", "weight")}

    def call() -> Outputs:
        y = linear(leaves["x"], leaves["weight"])
        return {"y": y} | gradients(y, ("x", "weight"), leaves)

    return call


def _products(sizes: Sizes) -> dict[str, tuple[str, Callable[[Inputs], torch.Tensor]]]:
    """Name -> (role, the gated product of the inputs)."""
    eager = late_compiled(rivals.eager_linear, sizes)

    def by(product: Product) -> Callable[[Inputs], torch.Tensor]:
        return lambda t: product(t["x"], t["weight"], t["scores"], t["keep"])

    return {
        "tss": ("ours", lambda t: tss_kernels.gated_linear(
            t["x"], t["weight"], t["scores"], importance=t["importance"])),
        "materialise": ("rival", by(rivals.materialised_linear)),
        "eager": ("rival", by(rivals.eager_linear)),
        "compile": ("rival", lambda t: eager()(t["x"], t["weight"], t["scores"], t["keep"])),
    }  # fmt: skip


def _whole(sizes: Sizes, bind: Callable[..., Callable[[], Outputs]], floor: Variant) -> tuple[Variant, ...]:
    made = [
        Variant(name, role, partial(bind, product), late=name == "compile")  # type: ignore[arg-type]
        for name, (role, product) in _products(sizes).items()
    ]
    return (*by_backends("gated_linear", made[0]), floor, *made[1:])


def ungated_forward(t: Inputs) -> Callable[[], Outputs]:
    """The ungated product alone."""
    return bind_forward(lambda t: linear(t["x"], t["weight"]), t)


def _input_grad_variants() -> tuple[Variant, ...]:
    def ours(t: Inputs) -> Callable[[], Outputs]:
        backend = select("gated_linear", t["dy"].device, t["dy"].dtype)
        return lambda: {"dx": input_grad_operator(t["dy"], t["weight"], t["packed"], backend)}

    def saved(t: Inputs) -> Callable[[], Outputs]:
        masked = torch.where(t["scores"] >= 0, t["weight"], 0)
        return lambda: {"dx": t["dy"] @ masked}

    def materialise(t: Inputs) -> Callable[[], Outputs]:
        return lambda: {"dx": t["dy"] @ torch.where(t["scores"] >= 0, t["weight"], 0)}

    return (
        *by_backends("gated_linear", Variant("tss", "ours", ours)),
        Variant("ungated", "floor", lambda t: lambda: {"dx": t["dy"] @ t["weight"]}),
        Variant("materialise", "rival", materialise),
        Variant("eager", "rival", saved),  # autograd keeps the masked weight: more memory, and the floor's time
    )


def _scores_grad_variants() -> tuple[Variant, ...]:
    def ours(t: Inputs) -> Callable[[], Outputs]:
        backend = select("gated_linear", t["dy"].device, t["dy"].dtype)
        return lambda: {"dscores": scores_grad_operator(t["dy"], t["x"], t["weight"], t["importance"], backend)}

    def eager(t: Inputs) -> Callable[[], Outputs]:
        return lambda: {"dscores": rivals.scores_grad(t["dy"], t["x"], t["weight"], t["keep"])}

    return (
        *by_backends("gated_linear", Variant("tss", "ours", ours)),
        Variant("ungated", "floor", lambda t: lambda: {"dscores": t["dy"].T @ t["x"]}),
        Variant("eager", "rival", eager),
    )


def _costs(sizes: Sizes, rows: int, in_features: int, out_features: int) -> dict[str, Cost]:
    """Counted bytes and operations; a gradient's gates are bits, the importance and the score gradient float32."""
    size, weights = sizes.dtype.itemsize, in_features * out_features
    forward = forward_cost(sizes, rows, in_features, out_features)
    activations = size * rows * (in_features + out_features)
    input_grad = Cost(activations + size * weights + weights // 8, forward.flops)
    scores_grad = Cost(activations + size * weights + 8 * weights, forward.flops)
    total = Cost(forward.bytes + input_grad.bytes + scores_grad.bytes, 3 * forward.flops)
    return {
        "gated_linear forward": forward, "gated_linear dX": input_grad, "gated_linear dS": scores_grad,
        "gated_linear forward+backward": total,
    }  # fmt: skip


def forward_cost(sizes: Sizes, rows: int, in_features: int, out_features: int) -> Cost:
    """As `tss_kernels.explain` counts the forward pass."""
    x, weight, scores = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape, dtype in (
            ((rows, in_features), sizes.dtype),
            ((out_features, in_features), sizes.dtype),
            ((out_features, in_features), torch.float32),
        )
    )
    counted = tss_kernels.explain("gated_linear", x, weight, scores)
    return Cost(counted.bytes, counted.flops)


# Operation -> the outputs that it gives.
OPERATIONS = {
    "gated_linear forward": ("y",), "gated_linear dX": ("dx",), "gated_linear dS": ("dscores",),
    "gated_linear forward+backward": ("y", "dx", "dscores"),
}  # fmt: skip


def _variants(operation: str, sizes: Sizes) -> tuple[Variant, ...]:
    if operation == "gated_linear dX":
        return _input_grad_variants()
    if operation == "gated_linear dS":
        return _scores_grad_variants()
    if operation == "gated_linear forward":
        return _whole(sizes, bind_forward, Variant("ungated", "floor", ungated_forward))
    return _whole(sizes, bind_both, Variant("ungated", "floor", bind_floor_both))


def case(
    sizes: Sizes, operation: str, rows: int, features: tuple[int, int], *, compiled: bool = True,
    curve: str | None = None,
) -> Case:  # fmt: skip
    """One operation at one shape; a compiled rival only if asked for."""
    return Case(
        operation, {"rows": rows, "in": features[0], "out": features[1]}, sizes.dtype,
        partial(draw, sizes, rows, *features), partial(only, OPERATIONS[operation]),
        tuple(one for one in _variants(operation, sizes) if compiled or one.name != "compile"),
        _costs(sizes, rows, *features)[operation], curve=curve,
    )  # fmt: skip


def cases(sizes: Sizes) -> Iterator[Case]:
    """Every operation at every shape, the most telling numbers of rows first."""
    for rows in sizes.rows:
        for features in sizes.features:
            for operation in OPERATIONS:
                yield case(sizes, operation, rows, features, compiled=sizes.compiles(rows))
