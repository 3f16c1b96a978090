"""Shared by the compiled backends of importance: cutting tensors into chunks, and results in any memory layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

BLOCK = 1024  # elements; chunks are multiples of it
CHUNK_BLOCKS = 2  # blocks of the smallest chunk
CHUNKS = 1024  # most chunks of all groups together, unless there are more groups

# Writes the importance of its first operand into the second, or (True) its maximum with the second's values; both are
# contiguous and not empty; per "tensor" or "row".
Run = Callable[[torch.Tensor, torch.Tensor, str, bool], None]


class Cut(NamedTuple):
    """Division of the elements: groups of `size` elements, each in `chunks` chunks of `chunk` elements."""

    groups: int
    size: int
    chunks: int
    chunk: int


def cut(raw: torch.Tensor, per: str, block: int = BLOCK) -> Cut:
    """Divide a tensor, by its shape (without 0) only, so that sums always have the same order."""
    size = size_of(raw, per)
    groups, blocks = raw.numel() // size, -(-size // block)
    chunk = max(CHUNK_BLOCKS, -(-blocks // max(1, CHUNKS // groups))) * block
    return Cut(groups, size, -(-size // chunk), chunk)


def size_of(raw: torch.Tensor, per: str) -> int:
    """Return the number of elements that share a mean and a deviation."""
    return raw.numel() if per == "tensor" else raw.shape[-1]


def normalized(run: Run, raw: torch.Tensor, per: str) -> torch.Tensor:
    """Return the importance of raw (out, in), float32."""
    importance = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    if raw.numel():
        run(raw.contiguous(), importance, per, False)
    return importance


def updated(run: Run, total: torch.Tensor, raw: torch.Tensor, per: str) -> None:
    """Set total to max(total, importance of raw) in place."""
    in_place(total, lambda whole: run(raw.contiguous(), whole, per, True))


def in_place(total: torch.Tensor, write: Callable[[torch.Tensor], None]) -> None:
    """Let `write` change total, passed to it as a contiguous tensor; do nothing if there are no elements."""
    if total.numel() == 0:
        return
    whole = total.contiguous()
    write(whole)
    if whole is not total:
        total.copy_(whole)
