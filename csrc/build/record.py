"""What was built and why the rest was not: a small file beside the package, which `python -m tss_kernels` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

NAME = "_build.json"


class Part(TypedDict):
    """One extension module: built or not, with what, or why not and what would change that."""

    built: bool
    how: str
    remedy: str


def line(parts: dict[str, Part]) -> str:
    """The record in one line."""
    said = [f"{name} {'built' if part['built'] else 'not built'} ({part['how']})" for name, part in parts.items()]
    return f"tss_kernels: {'; '.join(said)}"


def write(folder: Path, parts: dict[str, Part]) -> None:
    """Writes the record into the package's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(json.dumps(parts, indent=1) + "\n")
