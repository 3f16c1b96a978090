"""Result files as they are read, and the conditions under which they came about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure.report import Report, groups_of

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = "dispatch"  # a group that compares what dispatch may choose among, not this package with others
CURVES = "scaling"  # a group of several operations, which are shown each on its own
Record = dict[str, Any]


class Unreadable(ValueError):
    """What was asked for cannot be read; the message is one line with the file, the condition and the remedy."""


class Results(NamedTuple):
    """One result file: where it lies, all of it, and its cases by group."""

    path: Path
    content: dict[str, Any]
    groups: dict[str, list[Record]]

    @property
    def name(self) -> str:
        """The path as the documents write it: from the repository's root where it lies below that."""
        path = self.path.resolve()
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else self.path.name

    def chosen(self, groups: Sequence[str]) -> dict[str, list[Record]]:
        """The named groups; where none is named all but the candidates of dispatch. Raises Unreadable."""
        unknown = [group for group in groups if group not in self.groups]
        if unknown:
            raise Unreadable(f"{self.path} has no group {', '.join(unknown)}: it has {', '.join(self.groups)}")
        wanted = groups or [name for name in self.groups if name != CANDIDATES]
        return {name: records for name, records in self.groups.items() if name in wanted}


def families(group: str, records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records that are shown together, by name: a group, or of the curves those of one operation."""
    found: dict[str, list[Record]] = {}
    for record in records:
        name = re.split(r"[ ,:]", record["operation"])[0].strip("_") if group == CURVES else group
        found.setdefault(name, []).append(record)
    return found


def load(path: Path) -> Results:
    """A result file. Raises Unreadable."""
    remedy = "name a file that `python -m bench.measure` wrote"
    if not path.is_file():
        raise Unreadable(f"{path} is no file: {remedy}")
    try:
        content = Report(path).read()
        groups = groups_of(content)
        whole = _is_whole(content, groups)
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path} cannot be read ({error}): {remedy}") from error
    except ValueError as error:
        raise Unreadable(f"{str(error).partition(': move it')[0]}: {remedy}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{path} has no parts with cases ({type(error).__name__}: {error}): {remedy}") from error
    if not whole:
        raise Unreadable(
            f"{path} has no machine, or cases without operation, shape, variants or with times that are no numbers: "
            f"{remedy}"
        )
    return Results(path, content, groups)


def _is_whole(content: dict[str, Any], groups: dict[str, list[Record]]) -> bool:
    """Whether what readers take for granted is there."""
    machine = content["machine"]
    if not isinstance(machine, dict) or not isinstance(machine.get("packages") or {}, dict):
        return False
    return all(
        {"operation", "shape", "variants"} <= record.keys()
        and isinstance(record["shape"], dict)
        and all(
            isinstance(variant.get(name, 0.0), int | float)
            for variant in record["variants"].values()
            for name in ("median_us", "low_us", "high_us")
        )
        for cases in groups.values()
        for record in cases
    )


def is_gpu(results: Results) -> bool:
    """Whether a GPU was measured, on a machine that may have one without it being measured."""
    machine = results.content["machine"]
    names = [gpu["name"] for gpu in machine.get("gpus") or []]
    if "device" in machine:
        return str(machine["device"]).startswith("cuda")
    return bool(names) and ("name" not in machine or any(name in machine["name"] for name in names))


class Conditions(NamedTuple):
    """What has to be equal for two files' times to be comparable, and when they were measured."""

    machine: str
    threads: str
    python: str
    torch: str
    triton: str
    date: str
    commit: str
    sizes: str

    def versions(self) -> str:
        """Python, torch, and Triton where it is there."""
        known = (("Python", self.python), ("torch", self.torch), ("Triton", self.triton))
        return ", ".join(f"{name} {version}" for name, version in known if version)

    def line(self) -> str:
        """All but the commit, for a caption."""
        parts = (self.machine, self.threads, f"torch {self.torch}" if self.torch else "", self.date)
        return ", ".join(part for part in parts if part)


def conditions(results: Results) -> Conditions:
    """The conditions of a file, "" where it does not say."""
    machine, parts = results.content["machine"], results.content["parts"]
    gpu = next((one["name"] for one in machine.get("gpus") or []), "") if is_gpu(results) else ""
    name = machine.get("name") or gpu or machine.get("processor") or "unknown machine"
    counts = sorted({r["threads"] for cases in results.groups.values() for r in cases if r.get("threads")})
    threads = "" if is_gpu(results) or not counts else " and ".join(map(str, counts)) + " threads"
    packages = machine.get("packages") or {}
    dated = re.search(r"\d{4}-\d{2}-\d{2}", results.path.name)
    measured = [part for part in parts.values() if part.get("result")]
    dates = sorted({str(part["date"]) for part in measured if part.get("date")})
    commits = {
        f"{part['revision'][:9]}{'+' * bool(part.get('uncommitted_changes'))}"
        for part in measured
        if part.get("revision")
    }
    return Conditions(
        re.sub(r",? \d+ threads?$", "", name), "1 thread" if threads == "1 threads" else threads,
        machine.get("python") or "", packages.get("torch") or "", packages.get("triton") or "",
        dated[0] if dated else " to ".join(dict.fromkeys((*dates[:1], *dates[-1:]))), ", ".join(sorted(commits)),
        "tiny" if any(part.get("tiny") for part in measured) else "published",
    )  # fmt: skip


def ceilings_of(results: Results) -> dict[str, float]:
    """What the machine was measured to reach: "copies" in bytes a second, "<dtype> products" in operations a second."""
    found = results.content["parts"].get("measure.ceilings", {}).get("result") or {}
    copies = {"copies": found["bytes_per_second"]} if "bytes_per_second" in found else {}
    return copies | {f"{name} products": rate for name, rate in found.get("flops_per_second", {}).items()}
