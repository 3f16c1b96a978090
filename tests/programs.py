"""Run programs in tests; one that hangs fails the test with the stacks of all its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SECONDS = 300.0


class Program:
    """A program in a session of its own, with its output captured.

    Args:
        command: the program and its arguments.
        environment: changes to this process's environment.
        folder: working directory.
    """

    def __init__(
        self, *command: object, environment: Mapping[str, str] | None = None, folder: Path | str | None = None
    ) -> None:
        self.words = list(map(str, command))
        self.process = subprocess.Popen(
            self.words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})},
        )  # fmt: skip

    def finish(self, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """Wait for its end and return exit code and output; after `seconds`, fail with the stacks of its processes."""
        try:
            output, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            left = [*_descendants(self.process.pid), self.process.pid]  # torchrun's have sessions of their own
            _signal(left, signal.SIGABRT)  # on which Python prints the stacks of all threads
            try:
                errors = self.process.communicate(timeout=10)[1]
            except subprocess.TimeoutExpired:
                errors = "(no stacks: its processes did not end on SIGABRT)"
            _signal(left, signal.SIGKILL)
            self.stop()
            pytest.fail(f"{' '.join(self.words)} did not end within {seconds:g} s:\n{errors[-20_000:]}")
        return subprocess.CompletedProcess(self.words, self.process.returncode, output, errors)

    def stop(self) -> None:
        """Kill it, if it still runs, with all the processes that it started."""
        if self.process.poll() is None:
            _signal([*_descendants(self.process.pid), self.process.pid], signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def _signal(processes: list[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(process, number)


def _descendants(process: int) -> list[int]:
    """Return the processes that a process and its children started and that still run, the last ones first."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    return [one for child in parents.get(process, []) for one in (*_descendants(child), child)]


def run_program(
    *command: object,
    seconds: float = SECONDS,
    environment: Mapping[str, str] | None = None,
    folder: Path | str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return exit code and output; see `Program`."""
    return Program(*command, environment=environment, folder=folder).finish(seconds)
