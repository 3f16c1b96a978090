"""Reading of a result file: pytest-benchmark's JSON with what `bench/conftest.py` adds to each entry."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.machine import ROOT
from bench.core.timing import Span


class Unreadable(ValueError):
    """Something requested cannot be read; the message is one line with the file, the condition and the remedy."""


@dataclass(frozen=True)
class Entry:
    """A competitor's time in microseconds, and its time over ours, turn by turn."""

    name: str
    role: str
    time: Span
    ratio: Span | None
    info: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One case with all competitors that have a time; ratios are relative to the first of ours."""

    group: str
    operation: str
    shape: dict[str, int]
    dtype: str
    threads: int
    entries: tuple[Entry, ...]

    @property
    def ours(self) -> Entry | None:
        """The entry of ours, or None if it has no time."""
        return next((one for one in self.entries if one.role == "ours" and one.ratio is None), None)

    @property
    def others(self) -> tuple[Entry, ...]:
        """All entries that have a ratio to ours."""
        return tuple(one for one in self.entries if one.ratio is not None)

    @property
    def sizes(self) -> str:
        """The shape in words."""
        return " ".join(f"{name}={size}" for name, size in self.shape.items())


@dataclass(frozen=True)
class Results:
    """A file's cases, and the conditions under which they were measured."""

    path: Path
    content: dict[str, Any]
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """The path as in the documents: relative to the repository's root if it is below it, else the file name."""
        path = self.path.resolve()
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else self.path.name

    @property
    def machine(self) -> dict[str, Any]:
        """The output of `bench.core.machine`."""
        return self.content["machine_info"]["tss"]

    @property
    def device(self) -> str:
        """What was measured: "cpu" or "cuda"."""
        return self.machine["device"]

    @property
    def failed(self) -> list[str]:
        """Failed checks: their competitors have no time."""
        return self.content["tss"]["failed"]

    def of(self, groups: Sequence[str]) -> tuple[Record, ...]:
        """Return the records of these groups (all if none is named), in the order of the groups. Raises Unreadable."""
        there = tuple(dict.fromkeys(record.group for record in self.records))
        unknown = [group for group in groups if group not in there]
        if unknown:
            raise Unreadable(f"{self.path} has no group {', '.join(unknown)}: it has {', '.join(there)}")
        return tuple(record for group in groups or there for record in self.records if record.group == group)

    def conditions(self) -> str:
        """Return one line: device, versions, date and commit of the measurement."""
        machine, packages, commit = self.machine, self.machine["packages"], self.content["commit_info"]
        gpu = ", ".join(one["name"] for one in machine["gpus"][:1]) if self.device == "cuda" else ""
        threads = "" if gpu else f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
        versions = [f"{name} {packages[key]}" for name, key in (("torch", "torch"), ("Triton", "triton"))
                    if packages.get(key)]  # fmt: skip
        of = f"commit {commit['id'][:9]}{'+' * bool(commit.get('dirty'))}"
        if commit["id"] == "unversioned":  # a checkout without its history
            of = f"sources {commit['sources']}"
        date = str(self.content["datetime"])[:10]
        parts = (gpu or machine["processor"], threads, f"Python {machine['python']}", *versions, date, of)
        return ", ".join(part for part in parts if part)

    def busy(self) -> str:
        """Return a sentence about numbers measured beside other work, empty if there are none."""
        marked = [one.ours.info for one in self.records if one.ours is not None and one.ours.info.get("busy")]
        if not marked:
            return ""
        others = max((info.get("load") or {}).get("others") or 0.0 for info in marked)
        used = f"others used up to {others:.2g} of {self.machine['cpus']} cores; " if others else ""
        return (
            f"**Busy machine**: {len(marked)} of {len(self.records)} cases are marked *busy* ({used}their turns spread "
            f"over up to {max(info['spread'] for info in marked):.0%} of the median)."
        )

    def ceilings(self) -> str:
        """Return a sentence about the machine's measured ceilings, empty if they are unknown."""
        found = self.content["tss"].get("ceilings")
        if not found:
            return ""
        rates = [f"copies {digits(found['bytes_per_second'] / 1e9)} GB/s"]
        rates += [f"{name} products {digits(rate / 1e9)} GFLOP/s" for name, rate in found["flops_per_second"].items()]
        return f"Its ceilings, measured: {', '.join(rates)}."


def _record(entries: Sequence[dict[str, Any]]) -> Record:
    first, made = entries[0]["extra_info"], []
    for entry in entries:
        info, ratio = entry["extra_info"], entry["extra_info"].get("ratio")
        low, high = info["percentiles_us"]
        span = Span(entry["stats"]["median"] * 1e6, low, high)
        made.append(Entry(info["variant"], info["role"], span, None if ratio is None else Span(**ratio), info))
    return Record(
        first["group"], first["operation"], first["shape"], first["dtype"], first["threads"], tuple(made)
    )  # fmt: skip


def load(path: Path) -> Results:
    """Load a result file. Raises Unreadable."""
    remedy = "name a file that `pytest bench/ --benchmark --benchmark-json=FILE` or scripts/gpu.sh wrote"
    try:
        content = json.loads(path.read_text())
        cases: dict[str, list[dict[str, Any]]] = {}
        for entry in content["benchmarks"]:
            cases.setdefault(entry["group"], []).append(entry)
        found = Results(path, content, tuple(map(_record, cases.values())))
        found.conditions()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Unreadable(f"{path} cannot be read ({error}): {remedy}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise Unreadable(f"{path} is not a result file of this package ({error!r}): {remedy}") from error
    return found


def digits(value: float) -> str:
    """Format with three significant digits, and all digits before the point."""
    places = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.0995 else 3
    return f"{value:.{places}f}"


def time_text(us: Span) -> str:
    """Format a time with its unit, and its spread in the same unit."""
    size, unit = next(known for known in ((1e6, "s"), (1e3, "ms"), (0.0, "us")) if us.median >= known[0])
    median, low, high = (digits(value / (size or 1.0)) for value in us)
    return f"{median} {unit} ({low}-{high})"


@dataclass(frozen=True)
class Summary:
    """A competitor over all cases of an operation: geometric mean, lowest and highest of the cases' median ratios."""

    name: str
    role: str
    ratio: Span
    cases: int

    @property
    def text(self) -> str:
        """The ratio as text, the same in the figure and in tables."""
        span = f" ({digits(self.ratio.low)}-{digits(self.ratio.high)})" if self.cases > 1 else ""
        return f"{digits(self.ratio.median)}{span}"


@dataclass(frozen=True)
class Line:
    """An operation over all its cases."""

    title: str
    cases: int
    busy: int
    summaries: tuple[Summary, ...]


def _summaries(records: Sequence[Record]) -> Iterable[Summary]:
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        for one in record.others:
            assert one.ratio is not None
            found.setdefault((one.name, one.role), []).append(one.ratio.median)
    for (name, role), medians in found.items():
        mean = math.exp(math.fsum(map(math.log, medians)) / len(medians))
        yield Summary(name, role, Span(mean, min(medians), max(medians)), len(medians))


def summarise(records: Sequence[Record]) -> list[Line]:
    """Summarize every operation over all its measured shapes, separately by dtype if there are several."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        # The number of tensors that hold an optimizer's scores is a size, not another operation.
        operation = re.sub(r"^(soft_masked_adamw_ \w+), .*", r"\1", record.operation)
        found.setdefault((operation, record.dtype), []).append(record)
    operations = [operation for operation, _ in found]
    return [
        Line(
            operation + (f", {dtype}" if operations.count(operation) > 1 else ""), len(some),
            sum(bool(one.ours and one.ours.info.get("busy")) for one in some), tuple(_summaries(some)),
        )
        for (operation, dtype), some in found.items()
    ]  # fmt: skip
