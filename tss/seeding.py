"""Random streams that depend only on their key, such as a seed and names: the same in all processes and machines."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*parts: object, separator: str = "/") -> int:
    """Return a 63-bit seed that depends only on the parts.

    Python's own `hash` of a string differs from process to process, so the parts go through SHA-256.
    """
    digest = hashlib.sha256(separator.join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def tensor_stream(seed: int, *names: str) -> torch.Generator:
    """Return a CPU `torch.Generator` for a seed and names; adding a task or a site changes no other's draws."""
    import torch  # imported here, because data is prepared without torch

    return torch.Generator().manual_seed(seed_of(seed, *names, separator="\0"))


def stream(*parts: str | int) -> random.Random:
    """Return a `random.Random` for the parts."""
    key = "".join(f"{len(str(part))}:{part}" for part in parts)  # lengths keep ("a", "bc") apart from ("ab", "c")
    return random.Random(hashlib.sha256(key.encode()).digest())
