"""Launches of odd shapes, for `release_check.py`: sizes of 1, which are compiled in, sizes that no 16 divides, strides
of 0, of columns, of every second element and past 2^31, and float32 beside 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tests.kernels.inspectors.resources import Case
from tests.kernels.inspectors.triton_cases import BFLOAT16, FLOAT32, KERNELS, empty, name_of

__all__ = ["KERNELS", "OPERATIONS"]

FLOAT64 = torch.float64
# rows, in, out
SIZES = (
    (1, 1024, 64), (1, 1, 1), (5, 1, 64), (5, 64, 1), (7, 8, 8), (1, 64, 1024), (3, 7, 1), (100, 9, 1), (33, 48, 48),
    (1, 16, 16), (2, 32, 16), (300, 65, 1000),
)  # fmt: skip
# Strides of rows and of columns for 512 rows, by the number of columns.
LAYOUTS: dict[str, Callable[[int], tuple[int, int]]] = {
    "columns": lambda columns: (1, 512),
    "one element": lambda columns: (0, 0),
    "one row": lambda columns: (0, 1),
    "strides past 31 bits": lambda columns: (2**31 + 16, 1),
    "every second element": lambda columns: (2 * columns, 2),
}
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")


def strided(columns: int, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """512 rows without memory."""
    return torch.empty_strided((512, columns), LAYOUTS[layout](columns), dtype=dtype, device="meta")


def bits(rows: int, columns: int) -> torch.Tensor:
    """Packed gates without memory."""
    return empty(rows, (columns + 7) // 8, dtype=torch.uint8)


def gated_linear() -> Iterator[Case]:
    """All products, as the table of the architecture runs them: with and without bias and importance."""
    from tss_kernels.gated_linear import triton

    def call(x: torch.Tensor, dy: torch.Tensor) -> None:
        (_, in_features), out_features, dtype = x.shape, dy.shape[1], x.dtype
        weight, scores = empty(out_features, in_features, dtype=dtype), empty(out_features, in_features)
        gates = bits(out_features, in_features)
        triton.forward(x, weight, scores, empty(out_features, dtype=dtype), 0.0)
        triton.forward(x, weight, scores, None, 0.0)
        triton.packed_linear(x, weight, gates, None)
        triton.input_grad(dy, weight, gates)
        triton.scores_grad(dy, x, weight, scores)

    for dtype in (BFLOAT16, FLOAT32):
        for rows, in_features, out_features in SIZES:
            x, dy = empty(rows, in_features, dtype=dtype), empty(rows, out_features, dtype=dtype)
            label = f"{name_of(dtype)} {rows} x {in_features} -> {out_features}"
            yield Case(label, lambda x=x, dy=dy: call(x, dy), everywhere=True)
        for layout in LAYOUTS:
            x, dy = strided(1024, layout, dtype), strided(64, layout, dtype)
            yield Case(f"{name_of(dtype)}, {layout}", lambda x=x, dy=dy: call(x, dy), everywhere=True)


def gated_adapter() -> Iterator[Case]:
    """Both passes, the backward one with and without dX, and x wider than the weights."""
    from tss_kernels.gated_adapter import triton

    def call(x: torch.Tensor, dtype: torch.dtype, hidden: int, activation: str) -> None:
        rows, features = x.shape
        down, up = empty(hidden, features, dtype=dtype), empty(features, hidden, dtype=dtype)
        weights = down, bits(hidden, features), up, bits(features, hidden)
        biases = empty(hidden, dtype=dtype), empty(features, dtype=dtype)
        triton.forward(x, *weights, *biases, activation)
        triton.forward(x, *weights, None, None, activation)
        for for_x in (True, False):
            triton.input_grad(x, empty(rows, hidden, dtype=dtype), *weights, activation, for_x)

    for dtype in (BFLOAT16, FLOAT32):
        for activation in ACTIVATIONS:
            odd = ((1, 1, 1), (5, 9, 1), (7, 16, 16)) if activation == "gelu" else ()
            operands = [
                (empty(rows, features, dtype=dtype), hidden, f"{rows} x {features}, {hidden} hidden")
                for rows, features, hidden in ((1, 1024, 64), (512, 1024, 128), *odd)
            ]
            if activation == "gelu":  # it takes most registers
                operands += [(strided(1024, layout, dtype), 64, layout) for layout in ("columns", "one element")]
                operands += [(empty(512, 1024), hidden, f"x in float32, {hidden} hidden") for hidden in (64, 128)]
            for x, hidden, what in operands:
                label = f"{name_of(dtype)} {activation}, {what}"
                yield Case(label, lambda all=(x, dtype, hidden, activation): call(*all), everywhere=True)


def elementwise() -> Iterator[Case]:
    """Gates, importance and the optimizer's step."""
    from tss_kernels.adamw.triton import soft_masked_adamw_
    from tss_kernels.gates import triton as gates
    from tss_kernels.importance import triton as importance

    def call(raw: torch.Tensor) -> None:
        gates.pack_gates(raw, 0.0)
        gates.pack_gates_pair(raw, raw.t(), 0.0)
        gates.unpack_gates(bits(*raw.shape), raw.shape[1])
        for per in ("tensor", "row"):
            importance.normalize_importance(raw, per)
            importance.update_importance_(empty(*raw.shape), raw, per)
        importance.accumulate_importance_(raw, raw)

    def step(count: int, columns: int, site: str, weight_decay: float) -> None:
        tensors = [empty(1, columns) for _ in range(count)]
        soft_masked_adamw_(
            tensors, tensors, tensors, tensors, [None] * count if count == 2 else tensors,
            step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=weight_decay, site=site,
        )  # fmt: skip

    for shape in ((1, 1), (1, 9), (9, 1), (1, 1024), (3, 8)):
        for dtype in (FLOAT32, BFLOAT16):
            label, raw = f"{name_of(dtype)} {shape[0]} x {shape[1]}", empty(*shape, dtype=dtype)
            yield Case(label, lambda raw=raw: call(raw), everywhere=True)
    raw = empty(64, 1024, dtype=FLOAT64)
    yield Case("float64", lambda: importance.normalize_importance(raw, "tensor"), everywhere=True)
    for count, columns in ((1, 1), (2, 9), (16, 1024)):
        for site in ("gradient", "update"):
            for decay in (0.0, 0.1):
                arguments = count, columns, site, decay
                label = f"{count} of 1 x {columns}, {site}, decay {decay}"
                yield Case(label, lambda arguments=arguments: step(*arguments), everywhere=True)


OPERATIONS: dict[str, Callable[[], Iterator[Case]]] = {
    "gated_linear": gated_linear,
    "gated_adapter": gated_adapter,
    "elementwise": elementwise,
}
