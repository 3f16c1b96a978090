"""Operations on tensors so small that only the call overhead counts."""

from __future__ import annotations

from collections.abc import Iterator

from bench.cases import adamw, gated_adapter, gated_linear, layers
from bench.cases.sizes import Sizes
from bench.core.case import Case

ROWS, FEATURES, BOTTLENECK = 4, 8, 4


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield the cases, at 4 rows of 8 -> 8."""
    for operation in ("gated_linear forward", "gated_linear forward+backward"):
        yield gated_linear.case(sizes, operation, ROWS, (FEATURES, FEATURES), compiled=False)
    for use in layers.USES:
        yield layers.case(sizes, use, ROWS, (FEATURES, FEATURES))
    for with_gradients in (False, True):
        yield gated_adapter.case(sizes, (ROWS, FEATURES, BOTTLENECK), with_gradients, compiled=False)
    yield adamw.case("two tiny tensors", sizes, ((FEATURES, BOTTLENECK),) * 2, "update")
