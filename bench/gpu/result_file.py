"""The JSON file of a run on a GPU machine, complete at any time: pytest-benchmark's format plus the parts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class ResultFile:
    """{"benchmarks", "machine_info", "commit_info", ..., "parts": {name: {"status", "reason", "sources", ...}}}.

    Later calls add to the file. Raises ValueError for a file of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "machine_info": {}, "commit_info": {}, "benchmarks": [], "datetime": "", "version": "",
            "tss": {"tiny": False, "ceilings": None, "failed": [], "skipped": []}, "parts": {},
        }  # fmt: skip
        if path.exists():
            try:
                found = json.loads(path.read_text())
                self.content |= {**found, "parts": dict(found["parts"])}
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path} is not a file of scripts/gpu.sh ({error!r}): name another with --out"
                ) from error

    def part(self, name: str) -> dict[str, Any]:
        """Return what is known of a part; empty if it never began."""
        return self.content["parts"].get(name, {})

    def set_part(self, name: str, **values: Any) -> None:
        """Replace what is known of a part, and write the file."""
        self.content["parts"][name] = values
        self.write()

    def merge(self, measured: dict[str, Any]) -> None:
        """Add the results of one `pytest bench/`; cases measured again replace their earlier results."""
        titles = {entry["group"] for entry in measured["benchmarks"]}
        known = [entry for entry in self.content["benchmarks"] if entry["group"] not in titles]
        self.content["benchmarks"] = known + measured["benchmarks"]
        for name in ("machine_info", "commit_info", "datetime", "version"):
            self.content[name] = measured[name]
        before, found = self.content["tss"], measured["tss"]
        again = {line.rpartition(": ")[0] for line in (*found["failed"], *found["skipped"])} | titles
        for name in ("failed", "skipped"):
            kept = [line for line in before[name] if not any(line.startswith(f"{title}: ") for title in again)]
            found[name] = kept + found[name]
        self.content["tss"] = found | {"ceilings": found["ceilings"] or before["ceilings"]}
        self.write()

    def write(self) -> None:
        """Write a new file and move it over the old one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.content, indent=1))
        beside.replace(self.path)
