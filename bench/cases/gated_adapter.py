"""gated_adapter with biases and ReLU: forward, and forward and backward together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.functional import linear

import tss_kernels
from bench.cases import rivals
from bench.cases.sizes import Draw, Sizes, gradients, late_compiled
from bench.core.case import Case, Cost, Inputs, Outputs, Precision, Role, Variant, by_backends

Adapter = Callable[[Inputs], torch.Tensor]
OPERANDS = ("x", "dy", "down_weight", "down_bias", "up_weight", "up_bias")
TRAINED = ("x", "down_scores", "up_scores")


Shape = tuple[int, int, int]  # rows, hidden, bottleneck


def draw(sizes: Sizes, shape: Shape, seed: int) -> Inputs:
    """Draw inputs; "<layer>_keep" is 1 - importance, precomputed for rivals."""
    random, (rows, hidden, bottleneck) = Draw(sizes, seed), shape
    inputs: Inputs = {"x": random.normal(rows, hidden), "dy": random.normal(rows, hidden)}
    for layer, (out, inner) in {"down": (bottleneck, hidden), "up": (hidden, bottleneck)}.items():
        inputs[f"{layer}_weight"] = random.normal(out, inner, scale=0.05)
        inputs[f"{layer}_scores"] = random.normal(out, inner, dtype=torch.float32)
        inputs[f"{layer}_bias"] = random.normal(out, scale=0.1)
        inputs[f"{layer}_importance"] = random.unit(out, inner)
        inputs[f"{layer}_keep"] = 1 - inputs[f"{layer}_importance"]
    return inputs


def formula(with_gradients: bool, t: Inputs, precision: Precision) -> Outputs:
    """Compute the adapter written out, and its gradients by hand."""
    dtype, wide = precision
    values = {name: t[name].to(dtype) for name in t if name in OPERANDS}
    x, dy = values["x"], values["dy"]
    gated = {layer: torch.where(t[f"{layer}_scores"] >= 0, values[f"{layer}_weight"], 0) for layer in ("down", "up")}
    hidden = torch.relu(linear(x, gated["down"], values["down_bias"]))
    y = x + linear(hidden, gated["up"], values["up_bias"])
    if not with_gradients:
        return {"y": y}
    inner = torch.where(hidden > 0, dy @ gated["up"], 0)
    result = torch.float64 if dtype == torch.float64 else torch.float32

    def scores(layer: str, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = (left.to(wide).T @ right.to(wide)) * values[f"{layer}_weight"].to(wide)
        return product.to(result) * (1 - t[f"{layer}_importance"].to(result))

    return {
        "y": y,
        "dx": dy + inner @ gated["down"],
        "ddown_scores": scores("down", inner, x),
        "dup_scores": scores("up", dy, hidden),
    }


def _ours(t: Inputs) -> torch.Tensor:
    return tss_kernels.gated_adapter(
        t["x"], t["down_weight"], t["down_scores"], t["up_weight"], t["up_scores"], t["down_bias"], t["up_bias"],
        down_importance=t["down_importance"], up_importance=t["up_importance"],
    )  # fmt: skip


def _ungated(x: torch.Tensor, weight: torch.Tensor, scores: object, keep: object, bias: torch.Tensor) -> torch.Tensor:
    return linear(x, weight, bias)


def _bind(with_gradients: bool, trained: tuple[str, ...], run: Adapter, t: Inputs) -> Callable[[], Outputs]:
    leaves = t | {name: t[name].detach().requires_grad_() for name in trained}

    def call() -> Outputs:
        if not with_gradients:
            with torch.no_grad():
                return {"y": run(t)}
        y = run(leaves)
        return {"y": y} | gradients(y, trained, leaves)

    return call


def _variants(sizes: Sizes, told: tss_kernels.Explanation, with_gradients: bool, compiled: bool) -> tuple[Variant, ...]:
    eager = late_compiled(lambda t: rivals.adapter(rivals.eager_linear, t["x"], t), sizes)
    runs: list[tuple[str, Role, Adapter]] = [
        ("tss", "ours", _ours),
        ("ungated", "floor", lambda t: rivals.adapter(_ungated, t["x"], t)),
        ("materialise", "rival", lambda t: rivals.adapter(rivals.materialised_linear, t["x"], t)),
        ("eager", "rival", lambda t: rivals.adapter(rivals.eager_linear, t["x"], t)),
        ("compile", "rival", lambda t: eager()(t)),
    ]
    made = [
        Variant(
            name, role,
            partial(_bind, with_gradients, TRAINED if role != "floor" else ("x", "down_weight", "up_weight"), run),
        )
        for name, role, run in runs
        if compiled or name != "compile"
    ]  # fmt: skip
    return (*by_backends(told, sizes.device, made[0]), *made[1:])


def _told(sizes: Sizes, shape: Shape) -> tss_kernels.Explanation:
    rows, hidden, bottleneck = shape
    down, up = (bottleneck, hidden), (hidden, bottleneck)
    return tss_kernels.explain(
        "gated_adapter", sizes.like(rows, hidden), sizes.like(*down), sizes.like(*down, dtype=torch.float32),
        sizes.like(*up), sizes.like(*up, dtype=torch.float32), sizes.like(bottleneck), sizes.like(hidden),
    )  # fmt: skip


def _cost(sizes: Sizes, forward: tss_kernels.Explanation, shape: Shape, with_gradients: bool) -> Cost:
    """Count bytes and operations, the forward pass as `explain` does.

    The backward pass is one fused operation that reads x and dy, writes dx, and recomputes the hidden state.
    """
    if not with_gradients:
        return Cost(forward.bytes, forward.flops)
    rows, hidden, bottleneck = shape
    size, weights = sizes.dtype.itemsize, hidden * bottleneck
    backward = 3 * size * rows * hidden + 2 * (size * weights + weights // 8 + 8 * weights)
    # recomputed hidden state, two gradients of inputs, two of scores
    return Cost(forward.bytes + backward, forward.flops + 5 * 2 * rows * weights)


def case(sizes: Sizes, shape: Shape, with_gradients: bool, *, compiled: bool = True) -> Case:
    """Return the case of one adapter; compiled: with a compiled rival."""
    (rows, hidden, bottleneck), told = shape, _told(sizes, shape)
    return Case(
        f"gated_adapter forward{'+backward' if with_gradients else ''}",
        {"rows": rows, "hidden": hidden, "bottleneck": bottleneck}, sizes.dtype,
        partial(draw, sizes, shape), partial(formula, with_gradients), _variants(sizes, told, with_gradients, compiled),
        _cost(sizes, told, shape, with_gradients),
        # if the ReLU's input is nearly 0, its gradient depends on the last bit
        by_norm=frozenset({"dx", "ddown_scores"}),
    )  # fmt: skip


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield every shape, forward with backward first, since training runs it."""
    for rows in sizes.rows:
        for hidden, bottleneck in sizes.adapters:
            for with_gradients in (True, False):
                yield case(sizes, (rows, hidden, bottleneck), with_gradients, compiled=sizes.compiles(rows))
