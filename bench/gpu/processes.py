"""Children with a time limit, whose output goes to the log."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Finished(NamedTuple):
    """How a child ended: its exit code (None: stopped at its limit), seconds, and what it wrote."""

    code: int | None
    seconds: float
    output: str

    def tail(self, lines: int = 25) -> str:
        """The end of the output."""
        return "\n".join(self.output.splitlines()[-lines:])


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and what it started: it leads a process group of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        try:
            child.wait(timeout=5)
            if number == signal.SIGTERM:
                continue  # the leader is gone, its children may not be
            return
        except subprocess.TimeoutExpired:
            pass


def run_child(command: Sequence[str], seconds: float, environment: Mapping[str, str], log: Path) -> Finished:
    """Runs a command for at most so many seconds, its output appended to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        before = file.tell()
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        try:
            code = child.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            pass
        finally:
            _stop(child)
    with log.open("rb") as file:
        file.seek(before)
        output = file.read().decode(errors="replace")
    return Finished(code, time.monotonic() - start, output)
