"""Predicted times for an architecture at the decisive shapes, to compare with the measured ones.

python -m bench.gpu.predicted [sm_90]    # the table, on any machine
"""

from __future__ import annotations

import sys
from typing import Any

ROWS = (512, 4096, 16384, 65536)
# operation, in, out; for the adapter d and bottleneck
SHAPES = (
    ("packed_linear", 1024, 64), ("packed_linear", 64, 1024), ("packed_linear", 1024, 1024), ("gated_adapter", 1024, 64)
)  # fmt: skip


def predictions(architecture: str) -> list[dict[str, Any]]:
    """Predict a forward pass in bfloat16 by each backend and the vendor's route; empty if nothing was counted.

    Each prediction has the least and most microseconds, and the largest bound.
    """
    import torch

    from tss_kernels.backends.predictions import predicted

    lines = []
    for op, *features in SHAPES:
        for rows in ROWS:
            times, _ = predicted(op, architecture, torch.bfloat16, (rows, *features))
            by = {
                name: {"us": round(one.seconds * 1e6, 2), "to": round(one.slow * 1e6, 2), "bound": one.binding}
                for name, one in (times or {}).items()
            }
            if by:
                lines.append({"op": op, "shape": [rows, *features], "by": by})
    return lines


def as_text(lines: list[dict[str, Any]]) -> str:
    """Format the predictions, one line per shape."""
    shown = []
    for line in lines:
        rows, first, second = line["shape"]
        times = " | ".join(
            f"{name} {one['us']:.1f} to {one['to']:.1f} us ({one['bound']})" for name, one in line["by"].items()
        )
        shown.append(f"{line['op']} {rows} x {first} -> {second}: {times}")
    return "\n".join(shown)


if __name__ == "__main__":
    print(as_text(predictions(sys.argv[1] if len(sys.argv) > 1 else "sm_90")))
