"""The tasks of a handle as a table, and how far gates have moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from tss.adapters.record import State

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle


def flipped(
    since: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Share of gates that differ between two sets of packed gates, by layer."""
    bits = torch.arange(8, dtype=torch.uint8)
    shares = {}
    for name, packed in now.items():
        differ = packed.cpu() ^ since[name].cpu()
        shares[name] = int(((differ.unsqueeze(-1) >> bits) & 1).sum()) / max(1, sizes[name])
    return shares


def render(handle: TssHandle) -> str:
    """Task, kind, state, density, bytes and hash, one line a task; the active task is starred."""
    lines = [f"{'task':30} {'kind':15} {'state':9} {'density':>8} {'bytes':>10}  hash"]
    for name, record in handle.tasks.items():
        density, digest = "", ""
        if record.state is State.SEALED:
            digest = record.fingerprint()[:12]
        if record.state is not State.NEW:
            with handle.using(name):
                shares = handle.density()
            density = f"{sum(shares.values()) / len(shares):.3f}" if shares else ""
        star = "*" if name == handle.active else " "
        size = f"{record.sizes()['total']:,}"
        lines.append(f"{star}{name:29} {record.kind.kind:15} {record.state:9} {density:>8} {size:>10}  {digest}")
    if not handle.tasks:
        lines.append(" no tasks yet; add one with add_task(name, kind)")
    return "\n".join(lines)
