"""How time grows with one size while the others stay fixed."""

from __future__ import annotations

from collections.abc import Iterator

from bench.cases import adamw, gated_adapter, gated_linear
from bench.cases.sizes import Sizes
from bench.core.case import Case

BOTH = "gated_linear forward+backward"
# For a CPU, whose largest sizes must finish in seconds; on a GPU, rows are 8 times as many.
ROWS = (32, 128, 512, 2048, 8192)
FEATURES = (64, 256, 1024, 4096)
BOTTLENECKS = (16, 32, 64, 128, 256, 512)
TENSORS = (1, 4, 16, 48, 192, 768)
SCORES = 3 * 2**20


def _lengths(sizes: Sizes) -> tuple[tuple[int, ...], int]:
    """Return the numbers of rows, and the number at which the other sizes grow."""
    if sizes.tiny:
        return (8, 33), 8
    return (ROWS, 512) if sizes.device.type == "cpu" else (tuple(8 * rows for rows in ROWS), 16384)


def _all(sizes: Sizes) -> Iterator[Case]:
    counts, rows = _lengths(sizes)
    hidden, bottleneck = sizes.adapters[-1]
    features = (8, 24) if sizes.tiny else FEATURES
    for count, inner, outer in (
        *((count, hidden, bottleneck) for count in counts),
        *((rows, size, bottleneck) for size in features),
        *((rows, hidden, size) for size in features),
    ):
        yield gated_linear.case(sizes, BOTH, count, (inner, outer), compiled=False)
    for count, inner in (
        *((count, bottleneck) for count in counts),
        *((rows, size) for size in ((4, 8) if sizes.tiny else BOTTLENECKS)),
    ):
        yield gated_adapter.case(sizes, (count, hidden, inner), True, compiled=False)
    scores = 64 * 16 if sizes.tiny else SCORES
    for tensors in (1, 4) if sizes.tiny else TENSORS:
        yield adamw.case("scores in tensors", sizes, ((scores // 64 // tensors, 64),) * tensors, "update")


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield growing rows, in and out features, bottleneck, and tensors for the same scores; each shape once."""
    yield from {str(case): case for case in _all(sizes)}.values()
