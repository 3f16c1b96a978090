"""What every part of a run shares: where things are, what the machine has, and what a part comes to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.gpu.processes import Finished, run_child
from bench.measure.report import Report
from bench.measure.revision import ROOT

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
    `bench.measure.environment` found; site: a folder of packages that were carried along, or None.
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
