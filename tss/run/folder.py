"""Folder of a run: its files, the lock for writing them, and what a resume starts from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tss.adapters import saving
from tss.errors import StateError
from tss.io import PARTIAL, check_folder, locked, make_directory, safe_name, sha256, to_json, write_text
from tss.run.checkpoint import Checkpoint, TaskProgress, read_checkpoint, save_checkpoint
from tss.run.events import EventLog, Listener, Written
from tss.run.run_state import RunState, load_state

MADE = re.compile(
    r"(config\.yaml|env\.json|events\.jsonl|matrix\.json|tss\.json|report\.html|state/(run\.json|learning\.safetensors)"
    r"|predictions/\d+-[\w.-]+\.jsonl|(adapters/(frozen|shared)|tasks/\d+-[\w.-]+)-[0-9a-f]{12}\.safetensors)"
)
"""Names of the files that a run itself writes; nothing else in its folder is ever removed."""
FOLDERS = ("", "state", "predictions", "adapters", "tasks")
SHOWN = 3


class RunFolder:
    """Files of one run; `state/run.json` says what is finished.

    Args:
        folder: where the files are or will be.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "env.json"
        self.events = self.path / "events.jsonl"
        self.matrix = self.path / "matrix.json"
        self.state = self.path / "state" / "run.json"
        self.learning = self.path / "state" / "learning.safetensors"
        self.lock_file = self.path / "state" / "lock"

    def __str__(self) -> str:
        return str(self.path)

    def check(self, resume: bool) -> None:
        """Check that the folder is empty or missing for a new run, or exists for a resume.

        Raises:
            StateError: the folder cannot be used; the message names the remedy.
        """
        holds_run = any(path.exists() for path in (self.state, self.matrix, self.events))
        if holds_run and not resume:
            raise StateError(f"{self} already holds a run: continue it with --resume, or choose another folder")
        if resume and not self.path.is_dir():
            raise StateError(f"{self}: no such folder, nothing to resume; run without --resume to start")
        if holds_run and not self.state.is_file():
            raise StateError(f"{self.state} is missing, so the run in {self} cannot continue; start in another folder")
        check_folder(self.path)
        check_folder(self.state.parent)
        if not holds_run and not self.lock_file.exists() and self.path.is_dir():
            # a process that was killed before it had the lock leaves an empty state/
            empty = self.state.parent.is_dir() and not any(self.state.parent.iterdir())
            foreign = sorted(path.name for path in self.path.iterdir() if not (empty and path == self.state.parent))
            if foreign:
                more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
                raise StateError(
                    f"{self} contains files that are not part of a run ({', '.join(foreign[:SHOWN])}{more}): choose a "
                    "new or empty folder"
                )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out; the lock is released with the process, however that ends.

        Raises:
            StateError: another process is writing this run.
        """
        make_directory(self.state.parent)
        try:
            with locked(self.lock_file, wait=False):
                yield
        except BlockingIOError as error:
            raise StateError(f"{self}: another process is writing this run; wait for it or stop it") from error

    def remove_leftovers(self) -> None:
        """Remove files that a killed process of this run left half-written."""
        for folder in FOLDERS:
            for path in (self.path / folder).glob("*.partial"):
                name = PARTIAL.fullmatch(path.name)
                if name and MADE.fullmatch(f"{folder}/{name[1]}".lstrip("/")):
                    path.unlink(missing_ok=True)

    # What is finished.

    def load_state(self) -> RunState:
        """Read the state of what is finished.

        Raises:
            StateError: the file is truncated, was edited, or has another format.
        """
        return load_state(self.state)

    def begin(self, state: RunState, config: str, environment: Mapping[str, Any]) -> None:
        """Write the first files of a new run."""
        self.write_result(state, self.config, config)
        self.write_result(state, self.environment, to_json(environment, indent=1) + "\n")
        state.save(self.state)

    def open_events(self, written: Written, *, step_seconds: float, listener: Listener | None) -> EventLog:
        """Open the event log, truncated to the events in `written`."""
        return EventLog(self.events, written=written, step_seconds=step_seconds, listener=listener)

    def commit(self, state: RunState) -> None:
        """Make the sealed tasks' files the folder's current ones, after the state that names them was saved."""
        if state.saved is not None:
            saving.commit(self.path, state.saved)

    def read_saved(self, state: RunState) -> saving.SavedTasks | None:
        """Read the sealed tasks that the state names and check all files; None before the first task.

        Raises:
            StateError: a file is missing or changed.
        """
        if state.saved is None:
            return None
        try:
            return saving.read(self.path, state.saved)
        except StateError as error:
            raise StateError(
                f"{error}. Restore the file from a copy, or start in another folder; the other tasks are in tasks/"
            ) from error

    # The task being learned.

    def save_checkpoint(
        self,
        state: RunState,
        progress: TaskProgress,
        written: Written,
        *,
        task: str,
        learning: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Save a checkpoint inside the task that is being trained."""
        place = Checkpoint(state.id, task, len(state.sealed), written, progress, learning)
        save_checkpoint(self.learning, place, optimizer)

    def take_checkpoint(self, state: RunState) -> Checkpoint | None:
        """Read the checkpoint inside the first unfinished task; one left by a finished task is removed.

        Raises:
            StateError: the file is damaged, or belongs to another run.
        """
        if not self.learning.is_file():
            return None
        place = read_checkpoint(self.learning)
        if place.run != state.id:
            raise StateError(
                f"{self.learning} is from another run: restore this run's own file, or delete it; the task in "
                "training then starts from the beginning, and finished tasks are kept"
            )
        if place.index == len(state.sealed):
            return place
        self.drop_checkpoint()
        return None

    def drop_checkpoint(self) -> None:
        """Delete the checkpoint inside a task."""
        self.learning.unlink(missing_ok=True)

    # Results. The state has their checksums, so that an edited file is not taken for what was measured.

    def predictions(self, index: int, name: str) -> Path:
        """Return the path of a task's predictions."""
        return self.path / "predictions" / f"{index + 1:02d}-{safe_name(name)}.jsonl"

    def write_result(self, state: RunState, path: Path, text: str) -> None:
        """Write a result file and record its checksum; it counts once the state is saved."""
        write_text(path, text)
        state.files[path.relative_to(self.path).as_posix()] = sha256(text)

    def changed_results(self, state: RunState) -> list[str]:
        """Return a line for each result file that is missing or not what the run wrote."""
        lines = []
        for name, expected in state.files.items():
            path = self.path / name
            if not path.is_file():
                lines.append(f"{name}, which the run wrote, is missing")
            elif (found := sha256(path)) != expected:
                lines.append(f"{name} is not what the run wrote: SHA-256 {found}, expected {expected}")
        return lines
