"""Overlap of the gates of two tasks, compared with chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Packed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Overlap:
    """Pairwise gate overlap of T tasks: symmetric float64 arrays (T, T), with 1 on the diagonal of `jaccard`.

    Attributes:
        tasks: names of the tasks, in order.
        jaccard: |A and B| / |A or B| over all gates of all layers.
        expected: the Jaccard index of independent gates with the same densities per layer.
    """

    tasks: list[str]
    jaccard: np.ndarray
    expected: np.ndarray

    def mean_off_diagonal(self) -> tuple[float, float]:
        """Return (mean Jaccard, mean expected Jaccard) over pairs of different tasks."""
        above = np.triu_indices(len(self.tasks), k=1)
        return float(self.jaccard[above].mean()), float(self.expected[above].mean())


def gate_overlap(gates: dict[str, Packed]) -> Overlap | None:
    """Compute the overlap of every two tasks from packed gates; None with fewer than two tasks.

    Padding bits are zero and so in neither set; a layer's number of gates is computed as 8 per byte, which is exact if
    in_features is a multiple of 8.
    """
    tasks = list(gates)
    if len(tasks) < 2:
        return None
    layers = [layer for layer in gates[tasks[0]] if all(layer in gates[t] for t in tasks)]
    size = len(tasks)
    both, either = np.zeros((size, size)), np.zeros((size, size))
    both_expected, either_expected = np.zeros((size, size)), np.zeros((size, size))
    for layer in layers:
        bits = np.stack([np.unpackbits(gates[t][layer].reshape(-1)) for t in tasks]).astype(np.float32)
        on = bits.sum(axis=1, dtype=np.float64)
        together = (bits @ bits.T).astype(np.float64)
        chance = np.outer(on, on) / bits.shape[1]
        total = on[:, None] + on[None, :]
        both += together
        either += total - together
        both_expected += chance
        either_expected += total - chance
    nothing = np.ones_like(both)
    return Overlap(
        tasks,
        np.divide(both, either, out=nothing.copy(), where=either > 0),
        np.divide(both_expected, either_expected, out=nothing.copy(), where=either_expected > 0),
    )
