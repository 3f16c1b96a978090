"""Folder of a study: its fixed plan, the runs of its cells, and the last error of each failed cell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from tss.errors import ConfigError, StateError
from tss.io import PARTIAL, from_json, locked, make_directory, to_json, write_text
from tss.run.folder import RunFolder
from tss.run.run_state import RunState, differences, flattened
from tss.study.plan import Cell, cell_from

FORMAT = 1
PLAN = "study.json"
MOST = 5
"""Maximum number of differences reported one by one."""


class StudyFolder:
    """Folder of a study: `study.json`, `runs/<cell>`, `errors/<cell>.txt`, `logs/<cell>.txt`.

    Args:
        folder: path of the folder, which may not exist yet.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder)
        self.plan = self.path / PLAN

    def run(self, cell: Cell) -> Path:
        """Return the run folder of a cell."""
        return self.path / "runs" / cell.name

    def error(self, cell: Cell) -> Path:
        """Return the path of a cell's last error, which is deleted when the cell finishes."""
        return self.path / "errors" / f"{cell.name}.txt"

    def log(self, cell: Cell) -> Path:
        """Return the path of the standard error output of a cell's processes."""
        return self.path / "logs" / f"{cell.name}.txt"

    def finished(self, cell: Cell) -> bool:
        """Return whether a cell's run has finished, according to its checked state, with the cell's configuration."""
        state = self._state(cell)
        return state is not None and state.finished and not _foreign(cell, state)

    def foreign(self, cell: Cell) -> list[str]:
        """Return the differences between a cell's configuration and that of the run in its folder, if there is one."""
        state = self._state(cell)
        return [] if state is None else _foreign(cell, state)

    def _state(self, cell: Cell) -> RunState | None:
        """Return the checked state of a cell's run; None if it is missing or damaged, which its process reports."""
        folder = RunFolder(self.run(cell))
        try:
            return folder.load_state() if folder.state.is_file() else None
        except StateError:
            return None

    def failure(self, cell: Cell) -> str | None:
        """Return a cell's last error, or None."""
        path = self.error(cell)
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def note(self, cell: Cell, error: str | None) -> None:
        """Store a cell's error, or delete the stored one if `error` is None."""
        if error is None:
            self.error(cell).unlink(missing_ok=True)
        else:
            write_text(self.error(cell), error)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the study, so that no second process runs it.

        Raises:
            StateError: another process is running the study.
        """
        make_directory(self.path)
        try:
            with locked(self.path / "lock", wait=False):
                yield
        except BlockingIOError as error:
            raise StateError(f"{self.path}: another process is running this study; wait for it or stop it") from error

    def cells(self) -> list[Cell]:
        """Return the cells of the plan.

        Raises:
            StateError: there is no plan, or it cannot be read.
        """
        try:
            content = from_json(self.plan.read_bytes())
            if content.get("format") != FORMAT:
                raise StateError(
                    f"{self.plan}: format {content.get('format')}, this version reads {FORMAT}; resume with the "
                    "version that wrote it, or start in another folder"
                )
            return [cell_from(cell) for cell in content["cells"]]
        except FileNotFoundError as error:
            raise StateError(f"{self.path} has no study (no {PLAN}); name one: tss study CONFIG --out DIR") from error
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError, ConfigError) as error:
            raise StateError(f"{self.plan}: not the plan of a study ({error}); restore it from a copy") from error

    def fix(self, cells: Sequence[Cell]) -> list[Cell]:
        """Write the plan, or check it against an existing one; return the cells added to an existing plan.

        A study may grow by rows, orders or seeds; existing cells may not change.

        Raises:
            StateError: an existing cell differs or is missing from `cells`; or the folder has files not of a study.
        """
        if not self.plan.is_file():
            names = sorted(path.name for path in self.path.iterdir() if path.name != "lock")
            if foreign := [name for name in names if not PARTIAL.fullmatch(name)]:
                raise StateError(
                    f"{self.path} contains files that are not part of a study ({', '.join(foreign[:MOST])})"
                )
            self._write(cells)
            return []
        there, given = {cell.name: cell for cell in self.cells()}, {cell.name: cell for cell in cells}
        lines = []
        if dropped := [name for name in there if name not in given]:
            lines.append(f"{len(dropped)} of its runs are no longer in it, {dropped[0]} for example")
        for name in there.keys() & given.keys():
            old, new = flattened(there[name].config.resolved()), flattened(given[name].config.resolved())
            lines += [f"{name}: {line}" for line in differences(old, new, "there", "now")]
        if lines:
            more = [f"and {len(lines) - MOST} more differences"] if len(lines) > MOST else []
            raise StateError(
                f"{self.path} contains another study; "
                + "; ".join([*sorted(lines)[:MOST], *more])
                + f". Continue the existing one: tss study --out {self.path}, or start in another folder"
            )
        added = [cell for name, cell in given.items() if name not in there]
        if added:
            self._write([*there.values(), *added])
        return added

    def _write(self, cells: Sequence[Cell]) -> None:
        content = {"format": FORMAT, "cells": [cell.plain() for cell in cells]}
        write_text(self.plan, to_json(content, indent=1) + "\n")


def _foreign(cell: Cell, state: RunState) -> list[str]:
    there, own = flattened(state.config), flattened(cell.config.resolved())
    if own["precision"] == "auto":  # the run's is the precision that this stands for
        own["precision"] = there.get("precision")
    return differences(there, own, "in the run", "in the study")


def is_study(folder: Path | str) -> bool:
    """Return whether a folder contains a study."""
    return (Path(folder) / PLAN).is_file()
