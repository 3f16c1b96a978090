"""What `tss` raises when a user can act on it: every message names the condition, the values and the remedy."""

from __future__ import annotations

from pathlib import Path


class TssError(Exception):
    """A condition the user can act on; the command line prints it as one line and exits non-zero."""


class ConfigError(TssError):
    """A configuration key or value that is not usable."""


class DataError(TssError):
    """A data file that does not hold what its kind of task needs.

    Args:
        message: what was found and what was expected.
        path: the file, if one is to blame.
        line: its line, counted from 1.
    """

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        self.path, self.line = path, line
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)


class StateError(TssError):
    """A state or task file that is missing, truncated, edited, or belongs to another configuration."""


class ForgettingError(TssError):
    """A sealed task's gates, head, frozen weights or logits are not what they were: the run stops."""
