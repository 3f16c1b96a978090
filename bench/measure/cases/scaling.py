"""Scaling curves: one size grows, the others stay."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure.case import Case
from bench.measure.cases import adamw, gated_adapter, gated_linear
from bench.measure.cases.sizes import Sizes

BOTH = "gated_linear forward+backward"
# Of a CPU, whose largest sizes have to be done in seconds; a GPU goes four times as far.
ROWS = (32, 128, 512, 2048, 8192)
FEATURES = (64, 256, 1024, 4096)
BOTTLENECKS = (16, 32, 64, 128, 256, 512)
TENSORS = (1, 4, 16, 48, 192, 768)
SCORES = 3 * 2**20


def _lengths(sizes: Sizes) -> tuple[tuple[int, ...], int]:
    """The curve's numbers of rows, and the one at which the other sizes grow."""
    if sizes.tiny:
        return (8, 33), 8
    return (ROWS, 512) if sizes.device.type == "cpu" else (tuple(8 * rows for rows in ROWS), 16384)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Rows, features in and out, bottleneck, and the number of tensors that the same scores lie in."""
    rows_curve, rows = _lengths(sizes)
    hidden, bottleneck = sizes.adapters[-1]
    for count in rows_curve:
        yield gated_linear.case(sizes, BOTH, count, (hidden, bottleneck), compiled=False, curve="rows")
        yield gated_adapter.case(sizes, (count, hidden, bottleneck), True, compiled=False, curve="rows")
    for features in (8, 24) if sizes.tiny else FEATURES:
        yield gated_linear.case(sizes, BOTH, rows, (features, bottleneck), compiled=False, curve="in")
        yield gated_linear.case(sizes, BOTH, rows, (hidden, features), compiled=False, curve="out")
    for inner in (4, 8) if sizes.tiny else BOTTLENECKS:
        yield gated_adapter.case(sizes, (rows, hidden, inner), True, compiled=False, curve="bottleneck")
    for tensors in (1, 4) if sizes.tiny else TENSORS:
        scores = 64 * 16 if sizes.tiny else SCORES
        shapes = ((scores // 64 // tensors, 64),) * tensors
        yield adamw.case("scores in tensors", sizes, shapes, "update", curve="tensors")
