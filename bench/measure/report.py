"""The file that results go to, written anew after every piece, and the table made of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FORMAT = 1
FINISHED = ("done", "failed", "skipped")


class Report:
    """Parts by name, in one JSON file that is whole at any moment: {"format", "machine", "parts": {name: part}}.

    A part is {"status", "reason"?, "started", "seconds", "sources", "result"}. What another process wrote in between is
    kept: each change reads the file, replaces one part and moves a new file into place. One writer at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """Everything; an empty report where there is no file. Raises ValueError for a file of another kind."""
        if not self.path.exists():
            return {"format": FORMAT, "machine": {}, "parts": {}}
        try:
            content = json.loads(self.path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path} is no JSON ({error}): move it away or name another with --out") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{self.path} is no report of format {FORMAT}: move it away or name another with --out")
        return content

    def part(self, name: str) -> dict[str, Any]:
        """One part, empty if it never began."""
        return self.read()["parts"].get(name, {})

    def update(self, name: str, **values: Any) -> None:
        """Sets values of one part and keeps the others."""
        content = self.read()
        content["parts"].setdefault(name, {}).update(values)
        self._write(content)

    def replace(self, name: str, part: dict[str, Any]) -> None:
        """Puts a part in the place of what had its name."""
        content = self.read()
        content["parts"][name] = part
        self._write(content)

    def set_machine(self, machine: dict[str, Any]) -> None:
        """Sets what is known of the machine."""
        self._write(self.read() | {"machine": machine})

    def _write(self, content: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with beside.open("w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


def _others(variants: dict[str, Any], main: str) -> str:
    """How many times our time each other variant needs; more than 1 is good for us."""
    ours, cells = variants[main].get("median_us"), []
    for name, other in variants.items():
        if "failed" in other:
            cells.append(f"{name} FAILED")
        elif name != main and ours and "median_us" in other:
            cells.append(f"{name} {other['median_us'] / ours:.2f}x")
    return "  ".join(cells)


def _line(record: dict[str, Any]) -> tuple[str, ...]:
    size = " ".join(f"{name}={value}" for name, value in record["shape"].items())
    variants = record["variants"]
    main = next((name for name, variant in variants.items() if variant["role"] == "ours"), None)
    if main is None:
        return record["operation"], size, "-", "", "-", "-", "-", ""
    ours = variants[main]
    timed = "median_us" in ours
    return (
        record["operation"],
        size,
        f"{ours['median_us']:.1f}" if timed else "FAILED" if "failed" in ours else "-",
        f"{ours['low_us']:.1f}-{ours['high_us']:.1f}" if timed else "",
        f"{ours['host_us']:.0f}" if timed else "-",
        f"{ours['roofline_share']:.0%}" if "roofline_share" in ours else "-",
        f"{ours['peak_bytes'] / 2**20:.0f}" if ours.get("peak_bytes") is not None else "-",
        _others(variants, main),
    )


HEAD = ("operation", "shape", "us", "10-90 %", "host us", "roofline", "peak MiB", "others' time / ours")


def table(records: Iterable[dict[str, Any]]) -> str:
    """One line a case: our time, its spread, the roofline's share, and every other variant's time over ours."""
    lines = [HEAD, *(_line(record) for record in records)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip


def records_of(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every measured case of a report."""
    for part in content["parts"].values():
        yield from (part.get("result") or {}).get("cases", [])


def failures_of(content: dict[str, Any]) -> list[str]:
    """Every failed check of a report, one line each."""
    return [
        f"{record['operation']} {record['shape']}, {name}: {variant['failed'].splitlines()[0]}"
        for record in records_of(content)
        for name, variant in record["variants"].items()
        if "failed" in variant
    ]
