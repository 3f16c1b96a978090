"""Which strategy should run a masked product: every candidate at every class of shapes that the tables know.

The tables in `tss_kernels/configs` hold, for each class, up to how many rows the fused kernel runs; beyond, W * g is
written once and the vendor's product runs on it. `proposal` turns measured cases into such entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bench.measure.case import Case, Inputs, Outputs, Variant
from bench.measure.cases import gated_linear
from bench.measure.cases.sizes import Sizes

STRATEGIES = ("fused", "materialise")  # a compiled CUDA backend will be one more
ROWS = (4096, 16384, 1024, 65536, 256)
EVEN, UNEVEN = ((1024, 64), (64, 1024), (1024, 1024)), ((1001, 57), (57, 1001), (1001, 1001))
PRODUCTS = ("forward", "input_grad")
OPERATIONS = tuple(f"dispatch {product}" for product in PRODUCTS)


def _bind(product: str, strategy: str, t: Inputs) -> Callable[[], Outputs]:
    from tss_kernels.gated_linear import triton

    chosen: Any = strategy
    if product == "forward":
        return lambda: {"y": triton.forward(t["x"], t["weight"], t["scores"], None, 0.0, chosen)[0]}
    return lambda: {"dx": triton.input_grad(t["dy"], t["weight"], t["packed"], chosen)}


def cases(sizes: Sizes) -> Iterator[Case]:
    """Both products, 16-bit before float32, even shapes before uneven ones."""
    rows, dtypes = ((40,), (sizes.dtype,)) if sizes.tiny else (ROWS, (sizes.dtype, torch.float32))
    shapes = (((32, 16),), ((21, 9),)) if sizes.tiny else (EVEN, UNEVEN)
    output = {"forward": "y", "input_grad": "dx"}
    for dtype in dtypes:
        drawn = Sizes(**{**vars(sizes), "dtype": dtype})
        for group in shapes:
            for count in rows:
                for in_features, out_features in group:
                    for product in PRODUCTS:
                        yield Case(
                            f"dispatch {product}", {"rows": count, "in": in_features, "out": out_features}, dtype,
                            partial(gated_linear.draw, drawn, count, in_features, out_features),
                            partial(gated_linear.only, (output[product],)),
                            tuple(Variant(name, "ours", partial(_bind, product, name)) for name in STRATEGIES),
                            gated_linear.forward_cost(drawn, count, in_features, out_features),
                        )  # fmt: skip


def _class_of(record: dict[str, Any], table: Any) -> tuple[str, str, bool, str]:
    from tss_kernels.configs.table import bound_of, kind_of

    features = record["shape"]["in"], record["shape"]["out"]
    even = all(size % 16 == 0 for size in features)
    kind = kind_of(getattr(torch, record["dtype"]))
    return record["operation"].removeprefix("dispatch "), kind, even, bound_of(table, *features)


def crossover(points: Sequence[tuple[int, float]]) -> float | None:
    """The most rows up to which fused is not slower anywhere; None for always. points: (rows, fused / materialise)."""
    slower = [rows for rows, ratio in points if ratio > 1]
    if not slower:
        return None
    return max((rows for rows, _ in points if rows < min(slower)), default=0)


def proposal(records: Sequence[dict[str, Any]], device: torch.device, basis: str) -> dict[str, Any]:
    """Entries in the form of a table's `crossovers`, with what they rest on; rows None stands for `ALWAYS`.

    A class has an entry only if both strategies were measured for it; where one failed its check, nothing is proposed.
    """
    from tss_kernels.configs import table_for

    table = table_for(device)
    points: dict[tuple[str, str, bool, str], list[tuple[int, float]]] = {}
    for record in records:
        if record["operation"] not in OPERATIONS:
            continue
        times = [record["variants"].get(name, {}).get("median_us") for name in STRATEGIES]
        if None not in times:
            points.setdefault(_class_of(record, table), []).append((record["shape"]["rows"], times[0] / times[1]))
    entries = []
    for (product, kind, even, bound), found in sorted(points.items()):
        present = table.crossovers.get((product, kind, even, bound))  # type: ignore[arg-type]
        entries.append({
            "product": product, "kind": kind, "even": even, "bound": bound, "rows": crossover(found),
            "basis": f"measured {basis}", "points": sorted(found),
            "present": None if present is None else {
                "rows": None if present.rows == float("inf") else present.rows, "basis": present.basis
            },
        })  # fmt: skip
    return {"table": table.name, "crossovers": entries}
