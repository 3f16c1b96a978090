"""Random streams that depend on what they are for, and on nothing else: the same in every process, on every machine."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*parts: object, separator: str = "/") -> int:
    """A 63-bit seed that is a function of the parts alone.

    Python's own `hash` of a string differs from process to process, so the parts go through SHA-256.
    """
    digest = hashlib.sha256(separator.join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def tensor_stream(seed: int, *names: str) -> torch.Generator:
    """A CPU generator of torch's for the seed and the names: adding a task or a site changes no other's draws."""
    import torch  # data is prepared without it

    return torch.Generator().manual_seed(seed_of(seed, *names, separator="\0"))


def stream(*parts: str | int) -> random.Random:
    """A generator of Python's for the parts."""
    key = "".join(f"{len(str(part))}:{part}" for part in parts)  # lengths keep ("a", "bc") apart from ("ab", "c")
    return random.Random(hashlib.sha256(key.encode()).digest())
