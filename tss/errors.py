"""Exceptions for conditions that a user can act on; every message names the condition, the values and the remedy."""

from __future__ import annotations

from pathlib import Path


class TssError(Exception):
    """Condition that the user can act on; the command line prints it as one line per problem and exits non-zero."""


class ConfigError(TssError):
    """Configuration key or value that cannot be used."""


class DataError(TssError):
    """Data file that does not contain what its kind of task needs.

    Args:
        message: what was found and what was expected.
        path: the file, if the error is in one.
        line: line number in the file, counted from 1.
    """

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        self.path, self.line = path, line
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)


class StateError(TssError):
    """State or task file that is missing, truncated, edited, or belongs to another configuration.

    Also a task that is unknown or not in the state that a call needs, and a file or folder that cannot be used or
    locked.
    """


class ForgettingError(TssError):
    """Change of a sealed task's gates, head, frozen weights or logits; it stops the run."""
