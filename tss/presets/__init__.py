"""Runs (NAME.yaml, NAME.VARIANT.yaml) and studies (studies/NAME.yaml) by name; the first line says what each is for."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def study_names() -> list[str]:
    """Return the sorted names of the studies in the package."""
    folder = resources.files("tss") / "presets" / "studies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def study_file(name: str) -> Path:
    """Return the file of a study in the package."""
    return Path(str(resources.files("tss") / "presets" / "studies" / f"{name}.yaml"))
