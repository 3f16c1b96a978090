"""What every part of a run shares: where things are, what the machine has, and what a part comes to."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.gpu.processes import Finished, run_child
from bench.measure.report import Report

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tss_kernels", "tss/adapters", "bench", "tests/kernels", "csrc")
# done, failed: it ran to its end; skipped: it cannot run here; stopped: its time was up while it ran; not run: before
Status = Literal["done", "failed", "skipped", "stopped", "not run"]


class Outcome(NamedTuple):
    """How a part ended, in a sentence, and its numbers; None where the child wrote them itself."""

    status: Status
    reason: str
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class Context:
    """One run on one machine.

    device: "cuda", or "cpu" to see that everything runs; tiny: at sizes that are not worth timing; machine: what
    `bench.gpu.environment` found; site: a folder of packages that were carried along, or None.
    """

    python: str
    device: str
    tiny: bool
    report: Report
    machine: Mapping[str, Any]
    site: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where the children's output goes."""
        return self.report.path.with_suffix(".log")

    def environment(self, **values: str) -> dict[str, str]:
        """The children's environment: this checkout first on the path, the interpreter of Triton off."""
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        path = [str(ROOT), *([str(self.site)] if self.site else []), inherited.get("PYTHONPATH", "")]
        tools = [inherited.get("PATH", os.defpath), *([str(self.site / "bin")] if self.site else [])]
        return inherited | {
            "PYTHONPATH": os.pathsep.join(part for part in path if part), "PYTHONUNBUFFERED": "1",
            "PATH": os.pathsep.join(tools),
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **self.extra, **values,
        }  # fmt: skip

    def run(self, command: list[str], seconds: float, **values: str) -> Finished:
        """A child of this run."""
        return run_child(command, seconds, self.environment(**values), self.log)


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

    changes = git("status", "--porcelain")
    return git("rev-parse", "HEAD"), None if changes is None else bool(changes)


def sources() -> str:
    """A digest of the code that the numbers depend on, for checkouts that travel without their history."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and file.suffix in {".py", ".cu", ".cuh", ".cpp", ".h"}:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
