"""Random streams that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib
import random


def stream(*parts: str | int) -> random.Random:
    """A generator whose draws are a function of the parts alone: the same in every process, on every machine.

    Python's own `hash` of a string differs from process to process, so the parts go through SHA-256.
    """
    key = "".join(f"{len(str(part))}:{part}" for part in parts)  # lengths keep ("a", "bc") apart from ("ab", "c")
    return random.Random(hashlib.sha256(key.encode()).digest())
