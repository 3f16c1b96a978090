"""The file that results go to, written anew after every piece, and the table made of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class Span(NamedTuple):
    """The middle of many values, and their 10th and 90th percentile."""

    median: float
    low: float
    high: float


def is_timed(variant: dict[str, Any] | None) -> bool:
    """Whether a variant has a time that may be shown: one that failed a check has none."""
    return variant is not None and "median_us" in variant and "failed" not in variant


def main_of(record: dict[str, Any]) -> str | None:
    """The name of the first of ours, to which the ratios are."""
    return next((name for name, variant in record["variants"].items() if variant["role"] == "ours"), None)


def time_of(variant: dict[str, Any]) -> Span:
    """Microseconds of a timed variant."""
    return Span(variant["median_us"], variant["low_us"], variant["high_us"])


def ratio_of(record: dict[str, Any], name: str) -> Span | None:
    """How many times our time another variant needs; more than 1 is good for us. None where either has no time.

    Of two variants that did not take turns, the bounds are the widest that their percentiles allow.
    """
    variants, main = record["variants"], main_of(record)
    if main is None or name == main or not is_timed(variants[main]) or not is_timed(variants.get(name)):
        return None
    if "ratio" in variants[name]:
        return Span(**variants[name]["ratio"])
    ours, other = time_of(variants[main]), time_of(variants[name])
    return Span(other.median / ours.median, other.low / ours.high, other.high / ours.low)


def digits(value: float) -> str:
    """Three digits that count, and all of those before the point."""
    places = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.0995 else 3
    return f"{value:.{places}f}"


def time_texts(us: Span) -> tuple[str, str]:
    """A time with its unit, and its spread in the same unit."""
    size, unit = next(known for known in ((1e6, "s"), (1e3, "ms"), (0.0, "us")) if us.median >= known[0])
    median, low, high = (digits(value / (size or 1.0)) for value in us)
    return f"{median} {unit}", f"{low}-{high}"


def bytes_text(count: float | None) -> str:
    """Bytes in a binary unit; "-" where they are unknown."""
    if count is None:
        return "-"
    size, unit = next(
        known for known in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (0, "B")) if count >= known[0]
    )
    return f"{digits(count / size)} {unit}" if size else f"{count:.0f} {unit}"


def shape_text(shape: dict[str, int]) -> str:
    """The sizes of a case, by name."""
    return " ".join(f"{name}={value}" for name, value in shape.items())


def untimed_text(variant: dict[str, Any]) -> str:
    """Why a variant has no time, in one line."""
    if "failed" in variant:
        return "FAILED: " + first_line(variant["failed"])
    return "skipped: " + first_line(variant["skipped"]) if "skipped" in variant else "-"


def first_line(text: str, most: int = 120) -> str:
    """The beginning of an error's text."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= most else line[: most - 1] + "…"


def _others(record: dict[str, Any]) -> str:
    cells = []
    for name, other in record["variants"].items():
        ratio = ratio_of(record, name)
        if "failed" in other and name != main_of(record):
            cells.append(f"{name} FAILED")
        elif ratio is not None:
            cells.append(f"{name} {ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})")
    return "  ".join(cells)


def _line(record: dict[str, Any]) -> tuple[str, ...]:
    ours = record["variants"].get(main_of(record), {})
    time, spread = time_texts(time_of(ours)) if is_timed(ours) else (untimed_text(ours), "")
    share = ours.get("roofline_share") if is_timed(ours) else None
    return (
        record["operation"], shape_text(record["shape"]), record.get("dtype", "-"), time, spread,
        f"{ours['host_us']:.0f}" if is_timed(ours) else "-", "-" if share is None else f"{share:.0%}",
        bytes_text(ours.get("peak_bytes")), _others(record),
    )  # fmt: skip


HEAD = ("operation", "shape", "dtype", "ours", "10-90 %", "host us", "ceiling", "peak", "others' time / ours")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def table(records: Iterable[dict[str, Any]]) -> str:
    """For a terminal, one line a case: our time, its spread, its share of what the machine's ceilings allow, and every
    other variant's time over ours, with the spread of that."""
    return aligned([HEAD, *(_line(record) for record in records)])


def groups_of(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The measured cases of a report by their group; groups without cases are left out."""
    cases = {name: (part.get("result") or {}).get("cases", []) for name, part in content["parts"].items()}
    return {name.removeprefix("measure."): records for name, records in cases.items() if records}


def records_of(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every measured case of a report."""
    for records in groups_of(content).values():
        yield from records


def failures_of(content: dict[str, Any]) -> list[str]:
    """Every failed check of a report, one line each."""
    return [
        f"{record['operation']} {record['shape']}, {name}: {variant['failed'].splitlines()[0]}"
        for record in records_of(content)
        for name, variant in record["variants"].items()
        if "failed" in variant
    ]
