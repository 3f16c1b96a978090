"""Random streams that depend on their name alone: adding a task or a site changes no other's draws."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *names: str) -> torch.Generator:
    """A CPU generator seeded by sha256 over the seed and the names."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
