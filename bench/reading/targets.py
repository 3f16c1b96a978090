"""What this package set out to reach, for the tables and figures that say whether it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from bench.measure.report import is_timed, main_of, ratio_of
from bench.reading.files import Record

CEILING = "ceiling"  # in the place of a rival: a target for our share of the machine's ceilings


class Target(NamedTuple):
    """At least so many times our time, or so large a share of the ceilings, wherever operation and sizes are these.

    gpu: the kind of machine it is set for. operation: how the operation begins, a regular expression. sizes: key of
    the shape -> smallest and largest size.
    """

    gpu: bool
    operation: str
    against: str
    least: float
    words: str
    sizes: Mapping[str, tuple[float, float]] = {}

    @property
    def title(self) -> str:
        """The operations that it is set for, as a reader would write them."""
        return self.operation.replace("\\", "").strip()

    def covers(self, record: Record) -> bool:
        """Whether it is set for this case."""
        inside = all(low <= record["shape"].get(key, low - 1) <= high for key, (low, high) in self.sizes.items())
        return inside and re.match(self.operation, record["operation"]) is not None


def _at_most(times: float) -> float:
    return 1 / times


ANY = float("inf")
TARGETS = (
    Target(False, "layer ", "ungated", _at_most(1.05), "at most 1.05 times the ungated layer from 512 rows on",
           {"rows": (512, ANY)}),
    Target(False, "soft_masked_adamw_", "AdamW fused + multiply", 1.0,
           "faster than fused AdamW with a separate multiply"),
    Target(False, "training step, embedded", "adapters removed", _at_most(1.05),
           "at most 1.05 times the step without adapters"),
    Target(True, "gated_linear", "ungated", _at_most(1.05), "at most 1.05 times the ungated layer"),
    Target(True, "gated_linear", "eager", 2.0, "at least 2 times faster than eager up to 16,384 rows",
           {"rows": (0, 16384)}),
    Target(True, "gated_linear", "compile", 1.3, "at least 1.3 times faster than `torch.compile` up to 16,384 rows",
           {"rows": (0, 16384)}),
    Target(True, r"gated_adapter forward\+backward", "eager", 3.0, "at least 3 times faster than eager"),
    Target(True, r"gated_adapter forward\+backward", "compile", 1.5, "at least 1.5 times faster than `torch.compile`"),
    Target(True, r"gated_adapter forward\+backward", CEILING, 0.8, "80 % of the ceiling at 65,536 rows or more",
           {"rows": (65536, ANY)}),
    Target(True, "soft_masked_adamw_", "AdamW fused, no mask", 1.0, "no slower than fused AdamW without a mask"),
    Target(True, "soft_masked_adamw_", CEILING, 0.9, "90 % of copy bandwidth from 100 M scores on",
           {"scores": (1e8, ANY)}),
    Target(True, "training step, BART-Large", "adapters removed", _at_most(1.05),
           "at most 1.05 times the step without adapters"),
    Target(True, "training step, BART-Large", "eager", 1.3, "at least 1.3 times faster than with eager adapters"),
)  # fmt: skip


def target_of(record: Record, against: str, gpu: bool) -> Target | None:
    """What was set for a case against a variant on this kind of machine."""
    return next((one for one in TARGETS if (one.gpu, one.against) == (gpu, against) and one.covers(record)), None)


def reached(record: Record, target: Target) -> float | None:
    """What a case reached of a target's kind, None where it was not measured."""
    if target.against != CEILING:
        ratio = ratio_of(record, target.against)
        return None if ratio is None else ratio.median
    ours = record["variants"].get(main_of(record))
    return ours.get("roofline_share") if is_timed(ours) else None


def has_failed(record: Record, target: Target) -> bool:
    """Whether ours, or what it is compared with, failed its check: then nothing was reached."""
    variants = record["variants"]
    return any("failed" in variants.get(name, {}) for name in (main_of(record), target.against))
