"""Performance targets of this package, and in how many cases it meets them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.report.results import Record

CEILING = "the machine's ceiling"  # instead of a rival: a target for our share of the machine's ceilings


class Target(NamedTuple):
    """Least ratio of a competitor's time to ours, or least share of the ceilings, for this operation and these sizes.

    device: the kind of machine it is for. operation: a regular expression that matches the start of the operation.
    sizes: key of the shape -> smallest and largest size.
    """

    device: str
    operation: str
    against: str
    least: float
    words: str
    sizes: Mapping[str, tuple[float, float]] = {}

    def reached(self, record: Record) -> float | None:
        """Return the value that a case reached; None if the target is for other cases or it was not measured."""
        inside = all(low <= record.shape.get(key, low - 1) <= high for key, (low, high) in self.sizes.items())
        if record.ours is None or not inside or re.match(self.operation, record.operation) is None:
            return None
        if self.against == CEILING:
            return record.ours.info.get("roofline_share")
        other = next((one for one in record.others if one.name == self.against), None)
        return other.ratio.median if other is not None and other.ratio is not None else None


FEW, MANY = {"rows": (0, 16384)}, {"rows": (65536, math.inf)}
NEAR = 1 / 1.05
BOTH = r"gated_adapter forward\+backward"
TARGETS = (
    Target("cpu", "layer ", "ungated", NEAR, "at most 1.05 times the ungated layer from 512 rows on",
           {"rows": (512, math.inf)}),
    Target("cpu", "soft_masked_adamw_", "AdamW fused + multiply", 1.0,
           "faster than fused AdamW with a separate multiply"),
    Target("cpu", "training step, embedded", "adapters removed", NEAR, "at most 1.05 times the step without adapters"),
    Target("cuda", "gated_linear", "ungated", NEAR, "at most 1.05 times the ungated layer"),
    Target("cuda", "gated_linear", "eager", 2.0, "at least 2 times faster than eager up to 16,384 rows", FEW),
    Target("cuda", "gated_linear", "compile", 1.3, "at least 1.3 times faster than torch.compile up to 16,384 rows",
           FEW),
    Target("cuda", BOTH, "eager", 3.0, "at least 3 times faster than eager"),
    Target("cuda", BOTH, "compile", 1.5, "at least 1.5 times faster than torch.compile"),
    Target("cuda", BOTH, CEILING, 0.8, "80 % of the ceiling at 65,536 rows or more", MANY),
    Target("cuda", "soft_masked_adamw_", "AdamW fused, no mask", 1.0, "no slower than fused AdamW without a mask"),
    Target("cuda", "soft_masked_adamw_", CEILING, 0.9, "90 % of copy bandwidth from 100 M scores on",
           {"scores": (1e8, math.inf)}),
    Target("cuda", "training step, BART-Large", "adapters removed", NEAR,
           "at most 1.05 times the step without adapters"),
    Target("cuda", "training step, BART-Large", "eager", 1.3, "at least 1.3 times faster than with eager adapters"),
)  # fmt: skip


def verdicts(device: str, records: Sequence[Record]) -> list[tuple[Target, int, int, str]]:
    """Return each target for a kind of machine with the cases that meet it, all its cases, and the worst of them."""
    found = []
    for target in TARGETS:
        if target.device != device:
            continue
        cases = [(value, record) for record in records if (value := target.reached(record)) is not None]
        met = sum(value >= target.least for value, _ in cases)
        worst = min(cases, key=lambda case: case[0], default=None)
        said = "-" if worst is None else f"{worst[0]:.3g} ({worst[1].operation}, {worst[1].sizes})"
        found.append((target, met, len(cases), said))
    return found
