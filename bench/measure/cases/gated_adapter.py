"""gated_adapter with biases and ReLU: forward, and forward and backward together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.functional import linear

import tss_kernels
from bench.measure import rivals
from bench.measure.case import Case, Cost, Inputs, Outputs, Precision, Role, Variant, by_backends
from bench.measure.cases.sizes import Draw, Sizes, gradients, late_compiled
from tss_kernels.gated_adapter.api import gated_adapter_from_packed

Adapter = Callable[[Inputs], torch.Tensor]
OPERANDS = ("x", "dy", "down_weight", "down_bias", "up_weight", "up_bias")
TRAINED = ("x", "down_scores", "up_scores")


Shape = tuple[int, int, int]  # rows, hidden, bottleneck


def draw(sizes: Sizes, shape: Shape, seed: int) -> Inputs:
    """Random inputs; "<layer>_keep" is 1 - importance, which rivals get ready made."""
    random, (rows, hidden, bottleneck) = Draw(sizes, seed), shape
    inputs: Inputs = {"x": random.normal(rows, hidden), "dy": random.normal(rows, hidden)}
    for layer, (out, inner) in {"down": (bottleneck, hidden), "up": (hidden, bottleneck)}.items():
        inputs[f"{layer}_weight"] = random.normal(out, inner, scale=0.05)
        inputs[f"{layer}_scores"] = random.normal(out, inner, dtype=torch.float32)
        inputs[f"{layer}_bias"] = random.normal(out, scale=0.1)
        inputs[f"{layer}_importance"] = random.unit(out, inner)
        inputs[f"{layer}_keep"] = 1 - inputs[f"{layer}_importance"]
        inputs[f"{layer}_packed"] = tss_kernels.pack_gates(inputs[f"{layer}_scores"])
    return inputs


def formula(with_gradients: bool, t: Inputs, precision: Precision) -> Outputs:
    """The adapter written out, and its gradients by hand."""
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


def _ours_from_bits(t: Inputs) -> torch.Tensor:
    """As layers run it: their optimizer leaves the gates of the present scores behind as bits."""
    return gated_adapter_from_packed(
        t["x"], t["down_weight"], t["down_packed"], t["up_weight"], t["up_packed"], t["down_bias"], t["up_bias"],
        down_scores=t["down_scores"], up_scores=t["up_scores"],
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


def _variants(sizes: Sizes, with_gradients: bool, compiled: bool) -> tuple[Variant, ...]:
    eager = late_compiled(lambda t: rivals.adapter(rivals.eager_linear, t["x"], t), sizes)
    runs: list[tuple[str, Role, Adapter]] = [
        ("tss", "ours", _ours),
        ("tss, gates known", "ours", _ours_from_bits),
        ("ungated", "floor", lambda t: rivals.adapter(_ungated, t["x"], t)),
        ("materialise", "rival", lambda t: rivals.adapter(rivals.materialised_linear, t["x"], t)),
        ("eager", "rival", lambda t: rivals.adapter(rivals.eager_linear, t["x"], t)),
        ("compile", "rival", lambda t: eager()(t)),
    ]
    made = [
        Variant(
            name, role, late=name == "compile",
            bind=partial(
                _bind, with_gradients, TRAINED if role != "floor" else ("x", "down_weight", "up_weight"), run
            ),
        )
        for name, role, run in runs
        if compiled or name != "compile"
    ]  # fmt: skip
    ours = [by_backends("gated_adapter", variant) for variant in made[:2]]
    return (*ours[0], *ours[1], *made[2:])


def _cost(sizes: Sizes, shape: Shape, with_gradients: bool) -> Cost:
    """Forward as `tss_kernels.explain` counts it; the backward pass of one fused operation reads x and dy, writes dx,
    and computes the hidden state again."""

    def empty(*shape: int, dtype: torch.dtype = sizes.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, hidden, bottleneck = shape
    down, up = (bottleneck, hidden), (hidden, bottleneck)
    forward = tss_kernels.explain(
        "gated_adapter", empty(rows, hidden), empty(*down), empty(*down, dtype=torch.float32), empty(*up),
        empty(*up, dtype=torch.float32), empty(bottleneck), empty(hidden),
    )  # fmt: skip
    if not with_gradients:
        return Cost(forward.bytes, forward.flops)
    size, weights = sizes.dtype.itemsize, hidden * bottleneck
    backward = 3 * size * rows * hidden + 2 * (size * weights + weights // 8 + 8 * weights)
    # the hidden state again, two gradients of inputs, two of scores
    return Cost(forward.bytes + backward, forward.flops + 5 * 2 * rows * weights)


def case(sizes: Sizes, shape: Shape, with_gradients: bool, *, compiled: bool = True, curve: str | None = None) -> Case:
    """One adapter; a compiled rival only if asked for."""
    rows, hidden, bottleneck = shape
    return Case(
        f"gated_adapter forward{'+backward' if with_gradients else ''}",
        {"rows": rows, "hidden": hidden, "bottleneck": bottleneck}, sizes.dtype,
        partial(draw, sizes, shape), partial(formula, with_gradients), _variants(sizes, with_gradients, compiled),
        _cost(sizes, shape, with_gradients), curve=curve,
        # where the ReLU's input is nearly 0, its gradient is a matter of the last bit
        by_norm=frozenset({"dx", "ddown_scores"}),
    )  # fmt: skip


def cases(sizes: Sizes) -> Iterator[Case]:
    """Forward and backward first: it is what training runs."""
    for rows in sizes.rows:
        for hidden, bottleneck in sizes.adapters:
            for with_gradients in (True, False):
                yield case(sizes, (rows, hidden, bottleneck), with_gradients, compiled=sizes.compiles(rows))
