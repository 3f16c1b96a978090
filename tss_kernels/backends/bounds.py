"""Bounds on the time of a gated product on a chip, by counting: predict which backend is faster until it is measured.

Counted: instructions, programs and bytes (`counts.py` says from what). Modelled: programs are spread evenly over the
multiprocessors, each of which runs whole programs; instruction issue, the shared-memory port, tensor cores, L2 and
memory all work at their full rate in parallel, so that the slowest decides. Assumed: the rate of memory, the vendor's
share of the tensor cores' rate. Guessed: the rate of L2, the time between two launches, the vendor's tiles. Not
modelled: how long a program that is alone on a multiprocessor stalls, and how long the device waits for Python to
launch, which decides for kernels of few microseconds.

Expect 1.3 to 1.6 times the bounds of instructions, the port and tensor cores, for both backends alike; the rates of
memory and L2 are taken as those that are reached. The vendor's product includes this factor in its share of the
ceiling, so a fused kernel is compared with it by `expected`. A difference between two backends below this factor only
says which one to try first.
"""

from __future__ import annotations

from typing import NamedTuple

from tss_kernels.backends import counts
from tss_kernels.backends.counts import STEP, Counts


class Chip(NamedTuple):
    """Rates of one chip: memory and L2 in bytes per second, the rest per multiprocessor and clock cycle."""

    name: str
    multiprocessors: int
    clock: float
    memory: float
    l2: float
    l2_size: float
    port: int  # bytes
    products: int  # fused multiply-adds
    issued: int  # instructions


# Memory: assumed for a device copy on an H200, reads and writes counted; no result file records such a measurement. An
# H100 has less; its other rates are the same.
SM_90 = Chip("H200, H100", 132, 1.755e9, 4.3e12, 7e12, 50e6, 128, 2048, 4)
CHIPS = {"sm_90": SM_90}

NARROW = 64  # features that one narrow tile covers
LAUNCH = 1e-6  # guessed: seconds from the end of one kernel to the start of the next in a stream
# Share of the tensor cores' rate that the vendor's products reach: assumed, 790 of 949 TFLOP/s; no result file records
# such a measurement.
SHARE = 0.83
ON_TOP = 1.3  # the least factor expected on a kernel's bounds inside a multiprocessor
MOST_ON_TOP, L2_ON_TOP, LAUNCH_ON_TOP = 1.6, 1.4, 2.0  # the most: on the same, on L2's bound, on a launch's guess
INSIDE = ("issue", "port", "tensor")  # a multiprocessor
ON_CHIP = (*INSIDE, "L2")
MULTICAST = 2  # guessed: programs of the vendor's product that share the larger of their two operands


class Prediction(NamedTuple):
    """Seconds by bound, the number of launches, and the factor expected on the bounds inside a multiprocessor."""

    bounds: dict[str, float]
    launches: int
    on_top: float = ON_TOP

    @property
    def binding(self) -> str:
        """Name of the largest bound."""
        return max(self.bounds, key=lambda name: self.bounds[name])

    @property
    def seconds(self) -> float:
        """The largest bound plus the time of the launches."""
        return max(self.bounds.values()) + self.launches * LAUNCH

    @property
    def on_chip(self) -> float:
        """The largest bound other than memory, to rank tiles with the same memory bound."""
        return max(self.bounds[name] for name in ON_CHIP)

    @property
    def expected(self) -> float:
        """Seconds including the factor expected on the bounds, to compare with the vendor's product."""
        inside = max(self.bounds[name] for name in INSIDE)
        return max(self.on_top * inside, self.bounds["L2"], self.bounds["memory"]) + self.launches * LAUNCH

    @property
    def slow(self) -> float:
        """The longest time expected; a longer one would mean that the model misses something."""
        inside = max(self.bounds[name] for name in INSIDE) * self.on_top * MOST_ON_TOP / ON_TOP
        launches = self.launches * LAUNCH * LAUNCH_ON_TOP
        return max(inside, self.bounds["L2"] * L2_ON_TOP, self.bounds["memory"]) + launches

    def __str__(self) -> str:
        return f"{self.seconds * 1e6:.1f} us, bound by {self.binding}"


def divided_up(amount: int, part: int) -> int:
    """Return amount / part, rounded up."""
    return -(-amount // part)


def bounds_of(chip: Chip, one: Counts, programs: int, turns: int, l2: float, memory: float, loops: int = 1
              ) -> dict[str, float]:  # fmt: skip
    """Return seconds by bound: `programs` of `turns` turns each; l2, memory: total bytes; loops: products per turn."""
    cycles = divided_up(programs, chip.multiprocessors) / chip.clock
    products = loops * one.features * one.rows * STEP
    return {
        "issue": cycles * (one.outside + one.loop * turns) * one.warps / chip.issued,
        "port": cycles * (one.staged + one.port * turns) / chip.port,
        "tensor": cycles * turns * products / chip.products,
        "L2": l2 / chip.l2,
        "memory": memory / chip.memory,
    }


def _moved(rows: int, in_features: int, out_features: int) -> float:
    """Return the bytes of x, y, W and its packed gates, each once."""
    return 2 * rows * (in_features + out_features) + (2 + 1 / 8) * in_features * out_features


def product(
    chip: Chip, tile: Counts, rows: int, in_features: int, out_features: int, ranges: int = 1, sharing: int = 1
) -> Prediction:
    """Predict a product by packed gates; `ranges` of the sum are added by a second launch; sharing: see MULTICAST."""
    programs = ranges * divided_up(rows, tile.rows) * divided_up(out_features, tile.features)
    turns = divided_up(divided_up(in_features, STEP), ranges)
    sides = min(tile.features, tile.rows) + max(tile.features, tile.rows) / sharing
    stage = (2 * sides + tile.features / 8) * STEP
    result = 2 * rows * out_features
    sums = 2 * 4 * ranges * rows * out_features if ranges > 1 else 0  # partial sums of the ranges, written and read
    bounds = bounds_of(
        chip, tile, programs, turns, programs * turns * stage + result, _moved(rows, in_features, out_features)
    )
    return Prediction({name: seconds + sums / chip.l2 for name, seconds in bounds.items()}, 2 if ranges > 1 else 1)


def short(chip: Chip, tile: Counts, count: int, rows: int, in_features: int, out_features: int) -> Prediction:
    """Predict Triton's product over few features, whose programs compute `count` tiles of the result each."""
    programs = divided_up(rows, tile.rows) * divided_up(out_features, NARROW * count)
    l2 = programs * (tile.rows + count * NARROW * (1 + 1 / 16)) * 2 * STEP + 2 * rows * out_features
    return Prediction(bounds_of(chip, tile, programs, count, l2, _moved(rows, in_features, out_features)), 1)


def adapter(chip: Chip, tile: Counts, rows: int, features: int) -> Prediction:
    """Predict an adapter of up to 64 hidden units by packed gates, in one launch."""
    programs, turns = divided_up(rows, tile.rows), divided_up(features, STEP)
    x, weights = 2 * rows * features, 2 * (2 + 1 / 8) * NARROW * features
    # The residual is read a second time, from memory if the rows of x of all running programs do not fit in L2.
    at_work = min(programs, chip.multiprocessors * tile.resident) * tile.rows * features * 2
    memory = (3 if at_work > chip.l2_size else 2) * x + 2 * rows * NARROW + weights
    l2 = 3 * x + 2 * rows * NARROW + programs * weights
    return Prediction(bounds_of(chip, tile, programs, turns, l2, memory, loops=2), 1)


def vendor(chip: Chip, rows: int, in_features: int, out_features: int) -> Prediction:
    """Predict writing W * g once, then the vendor's product with the best tile for the shape, at its share of rates."""
    weights = in_features * out_features
    writing = (2 + 2 + 1 / 8) * weights / chip.memory

    def by(tile: Counts) -> dict[str, float]:
        found = product(chip, tile, rows, in_features, out_features, sharing=MULTICAST).bounds
        return {name: seconds / (SHARE if name in INSIDE else 1.0) + writing for name, seconds in found.items()}

    best = min(map(by, counts.VENDOR), key=lambda bounds: max(bounds.values()))
    return Prediction(best, 2, on_top=1.0)


def from_scores(chip: Chip, found: Prediction, weights: int, inside: bool) -> Prediction:
    """Add the cost of scores to a prediction by packed gates: reading them, in the product or in a launch before it."""
    bounds = {name: seconds + 4 * weights / chip.memory for name, seconds in found.bounds.items()}
    return found._replace(bounds=bounds, launches=found.launches + (0 if inside else 1))
