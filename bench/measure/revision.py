"""Of which code a number is: the commit, and a digest of the sources."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tss_kernels", "tss/adapters", "bench", "tests/kernels", "csrc")


def revision() -> tuple[str | None, bool | None]:
    """The commit of this checkout and whether it has uncommitted changes; None where git cannot say."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments],
                capture_output=True, text=True, timeout=20,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # What the measuring itself writes is no change of what is measured.
    changes = git("status", "--porcelain", "--", ".", ":(exclude)bench/results")
    return git("rev-parse", "HEAD"), None if changes is None else bool(changes)


def sources() -> str:
    """A digest of the code that the numbers depend on, for checkouts that travel without their history."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and file.suffix in {".py", ".cu", ".cuh", ".cpp", ".h"}:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
