"""Record of what was built and why the rest was not: a small file in the package, read by `python -m tss_kernels`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

NAME = "_build.json"


class Part(TypedDict):
    """Record of one extension module: built, and with what; or not built, why, and what would change that."""

    built: bool
    how: str
    remedy: str


def line(parts: dict[str, Part]) -> str:
    """Return the record as one line."""
    if not parts:
        return "tss_kernels: no record of its build; install it again"
    return f"tss_kernels: {'; '.join(_said(name, part) for name, part in parts.items())}"


def _said(name: str, part: Part) -> str:
    remedy = f": {part['remedy']}" if part["remedy"] and not part["built"] else ""
    return f"{name} {'built' if part['built'] else 'not built'} ({part['how']}{remedy})"


def read(folder: Path) -> dict[str, Part]:
    """Return the record in the package's folder; empty if it is missing or unreadable."""
    try:
        return json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}


def write(folder: Path, parts: dict[str, Part]) -> None:
    """Write the record into the package's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(json.dumps(parts, indent=1) + "\n")
