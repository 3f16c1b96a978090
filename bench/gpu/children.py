"""Child processes with a time limit, whose output goes to a log."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.core.machine import ROOT

# Seconds that each signal gets to end the child; pytest writes its files when it is interrupted.
PATIENCE = ((signal.SIGINT, 15.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


class Finished(NamedTuple):
    """Result of a child process: its exit code (None: stopped at its limit) and its output."""

    code: int | None
    output: str

    def tail(self, lines: int = 25) -> str:
        """Return the last lines of the output."""
        return "\n".join(self.output.splitlines()[-lines:])


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and the processes that it started: it leads its own process group."""
    for number, patience in PATIENCE:
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        try:
            child.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGKILL:
            return


def _environment(extra: dict[str, str]) -> dict[str, str]:
    """Return the environment: this checkout first on the path, Triton's interpreter off."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    fixed = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return inherited | fixed | {"PYTHONPATH": os.pathsep.join(path)} | extra


def run_child(command: Sequence[str], seconds: float, log: Path, **environment: str) -> Finished:
    """Run a command in the checkout for at most `seconds`; append its output to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        before = file.tell()
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
            env=_environment(environment), start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        try:
            code = child.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            pass
        finally:
            stop(child)
    with log.open("rb") as file:
        file.seek(before)
        return Finished(code, file.read().decode(errors="replace"))
