"""Table of a model's tasks, and the fraction of gates that changed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tss.adapters.task_store import TaskRecord
from tss.errors import StateError


def flipped(
    since: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Return the fraction of gates that differ between two sets of packed gates, by layer.

    Raises:
        StateError: `since` lacks a layer.
    """
    if missing := sorted(set(now) - set(since)):
        raise StateError(f"flipped: the gates to compare with have no layer {missing[0]}; take them from packed()")
    bits = torch.arange(8, dtype=torch.uint8)
    shares = {}
    for name, packed in now.items():
        differ = packed.cpu() ^ since[name].cpu()
        shares[name] = int(((differ.unsqueeze(-1) >> bits) & 1).sum()) / sizes[name]
    return shares


def render(tasks: Mapping[str, TaskRecord], active: str | None) -> str:
    """Return a table with the name, kind, state, density, bytes and hash of each task; the active task is starred."""
    header = ("task", "kind", "state", "density", "bytes", "hash")
    rows = [
        (
            ("* " if name == active else "  ") + name,
            record.kind.kind,
            str(record.state),
            "-" if record.density is None else f"{record.density:.4f}",
            f"{record.bytes:,}",
            "-" if record.hash is None else record.hash[:12],
        )
        for name, record in tasks.items()
    ]
    widths = [max(map(len, column)) for column in zip(("  " + header[0], *header[1:]), *rows, strict=True)]
    left = (True, True, True, False, False, True)
    lines = [
        "  ".join(
            cell.ljust(w) if to_left else cell.rjust(w) for cell, w, to_left in zip(row, widths, left, strict=True)
        )
        for row in [("  " + header[0], *header[1:]), *rows]
    ]
    if not rows:
        lines.append("  no task yet: add_task(name, kind)")
    return "\n".join(line.rstrip() for line in lines)
