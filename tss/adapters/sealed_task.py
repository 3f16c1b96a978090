"""Value of a sealed task: the tensors it keeps, and the joint gates of several tasks for a call that mixes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tss.adapters.storage import Tensors

ALIGNMENT = 16  # bytes; start of each layer's gates in a task's block, for kernels that read many bytes at once

Layout = tuple[tuple[str, int, tuple[int, ...]], ...]


class SealedTask:
    """Value of a sealed task, which never changes.

    All gates of a task are in one block of memory, so that those of a batch's tasks are brought together in one copy.

    Attributes:
        block: uint8 (bytes,), the gates of all layers; None without gates.
        gates: packed gates, uint8 (out, ceil(in / 8)), by layer, down before up for each site; views of the block.
        head: state dict of the task's own head; None without one.
        weights: the task's own weights by name, equally many for each site; empty if it has none.
        sites: number of sites.
        by_site: what each site runs for the task, (down, up) gates or its own weights; None if it runs shared weights.
        bytes: size of all tensors kept.
    """

    def __init__(self, gates: Tensors, head: Tensors | None, weights: Tensors | None = None, sites: int = 1) -> None:
        layout, end = [], 0
        for name, packed in gates.items():
            layout.append((name, end, tuple(packed.shape)))
            end += -(-packed.numel() // ALIGNMENT) * ALIGNMENT
        block = next(iter(gates.values())).new_zeros(end) if gates else None
        self._set(block, tuple(layout), head, weights or {}, sites)
        for name, packed in gates.items():
            self.gates[name].copy_(packed)

    def _set(
        self, block: torch.Tensor | None, layout: Layout, head: Tensors | None, weights: Tensors, sites: int
    ) -> None:
        self.block, self._layout, self.head, self.weights, self.sites = block, layout, head, weights, sites
        self.gates: Tensors = {}
        if block is not None:
            self.gates = {name: part_of_block(block, start, shape) for name, start, shape in layout}
        kept = list((self.gates or weights).values())
        size = len(kept) // sites
        self.by_site = [tuple(kept[start : start + size]) for start in range(0, len(kept), size)] if kept else None
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def tensors(self) -> Tensors:
        """Return all that its outputs depend on, except frozen tensors and trained weights that tasks share.

        Names are "gates.<layer>", "weights.<name>" and "head.<parameter>".
        """
        parts = {"gates": self.gates, "weights": self.weights, "head": self.head or {}}
        return {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}

    def placed(self, place: Callable[[torch.Tensor], torch.Tensor]) -> SealedTask:
        """Return the same value with its tensors moved by `place`, which must not change values."""
        other = object.__new__(SealedTask)
        other._set(
            None if self.block is None else place(self.block),
            self._layout,
            None if self.head is None else {key: place(tensor) for key, tensor in self.head.items()},
            {key: place(tensor) for key, tensor in self.weights.items()},
            self.sites,
        )
        return other

    def __getstate__(self) -> tuple[Any, ...]:
        return self.block, self._layout, self.head, self.weights, self.sites

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._set(*state)  # makes views of the block that was copied or loaded

    def banks(self, others: Sequence[SealedTask], count: int) -> list[tuple[torch.Tensor, ...]]:
        """Return the gates of this task and of others on the same adapters, for `count` tasks, by site and layer.

        Returns:
            For each site (down, up), uint8 (count, out, ceil(in / 8)). If `count` exceeds the number of tasks, copies
            of this task's gates fill up the rest. So a compiled call sees the same shapes for any number of tasks.
        """
        assert self.block is not None
        tasks = [self, *others]
        blocks = [task.block.to(self.block.device) for task in tasks if task.block is not None]
        bank = torch.stack([*blocks, *[self.block] * (count - len(blocks))])
        parts = [part_of_block(bank, start, shape) for _, start, shape in self._layout]
        size = len(parts) // self.sites
        return [tuple(parts[start : start + size]) for start in range(0, len(parts), size)]


def part_of_block(block: torch.Tensor, start: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a layer's gates in a block (bytes,), or in each block of a bank (tasks, bytes), as a view."""
    return block[..., start : start + math.prod(shape)].view(*block.shape[:-1], *shape)
