"""Writes what a result file proposes into tss_kernels/configs/measured.py: `python -m bench.gpu.adopt RESULT.json`.

Entries that the file does not propose stay as they are. Read the proposal first: the command prints it, and with
--dry-run does nothing else. Needs no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measure.proposals import lines
from bench.measure.report import Report
from tss_kernels.backends.tables import measured
from tss_kernels.backends.tables.table import ALWAYS, Crossover

TARGET = Path(measured.__file__)
HEAD = (
    '"""What was measured on GPUs, in the place of predictions: written by `python -m bench.gpu.adopt RESULT.json`."""'
)
TABLES = {"TRITON": "Crossovers of the Triton products", "CUDA": "Crossovers of the CUDA C++ products"}

LINE = 120  # characters, beyond which ruff complains

Crossovers = Mapping[str, Mapping[tuple[Any, ...], Crossover]]
Preferences = Mapping[str, tuple[tuple[str, ...], str]]


class Unfit(ValueError):
    """A result file from which nothing may be adopted."""


def proposed_by(content: Mapping[str, Any]) -> dict[str, Any]:
    """The proposal of a report. Raises Unfit where there is none, or it came from sizes that mean nothing."""
    part = content["parts"].get("measure.dispatch", {})
    found = (part.get("result") or {}).get("proposal")
    if not found:
        raise Unfit("the file has no proposal: run scripts/gpu.sh --parts build,measure")
    if part.get("tiny"):
        raise Unfit("the file was measured at tiny sizes, whose times mean nothing")
    return found


def merged(proposed: Mapping[str, Any]) -> tuple[dict[str, Crossovers], Preferences]:
    """The present entries with those of a proposal in their place."""
    tables: dict[str, dict[str, dict[tuple[Any, ...], Crossover]]] = {
        name: {table: dict(entries) for table, entries in getattr(measured, name).items()} for name in TABLES
    }
    for entry in proposed["crossovers"]:
        rows = ALWAYS if entry["rows"] is None else entry["rows"]
        key = tuple(entry[name] for name in ("product", "kind", "even", "bound"))
        tables[entry["backend"].upper()].setdefault(entry["table"], {})[key] = Crossover(rows, entry["basis"])
    preferences = dict(measured.PREFERENCES)
    preferences |= {entry["op"]: (tuple(entry["backends"]), entry["basis"]) for entry in proposed["preferences"]}
    return tables, preferences  # type: ignore[return-value]


def _words(values: Sequence[object]) -> str:
    said = ", ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)
    return f"({said},)" if len(values) == 1 else f"({said})"


def _crossovers(name: str, tables: Crossovers) -> list[str]:
    made = ["", f"# {TABLES[name]}, by table."]
    made.append(f"{name}: dict[str, Crossovers] = {{" + ("" if tables else "}"))
    for table, entries in sorted(tables.items()):
        made.append(f'    "{table}": {{')
        for key, crossover in sorted(entries.items()):
            rows = "ALWAYS" if crossover.rows == ALWAYS else str(int(crossover.rows))
            made += [f"        {_words(key)}: Crossover(", f'            {rows}, "{crossover.basis}"', "        ),"]
        made.append("    },")
    return made + (["}"] if tables else [])


def text_of(tables: Mapping[str, Crossovers], preferences: Preferences) -> str:
    """The whole file for these entries."""
    made = [
        HEAD, "", "from __future__ import annotations", "",
        "from tss_kernels.backends.tables.table import ALWAYS, Bound, Crossover, Kind, Masking", "",
        '__all__ = ["ALWAYS", "CUDA", "PREFERENCES", "TRITON"]', "",
        "Crossovers = dict[tuple[Masking, Kind, bool, Bound], Crossover]",
    ]  # fmt: skip
    for name in TABLES:
        made += _crossovers(name, tables[name])
    made += ["", "# Backends by operation, the first preferred, and on what basis."]
    made.append("PREFERENCES: dict[str, tuple[tuple[str, ...], str]] = {" + ("" if preferences else "}"))
    made += [f'    "{op}": ({_words(names)}, "{basis}"),' for op, (names, basis) in sorted(preferences.items())]
    made += ["}"] if preferences else []
    if any(len(line) > LINE for line in made):
        made.insert(1, "# ruff: noqa: E501")
    if any(tables.values()) or preferences:
        made.insert(1, "# fmt: off")
    return "\n".join(made) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where nothing may be adopted."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.adopt", description=__doc__)
    parser.add_argument("result", type=Path, help="a JSON file of scripts/gpu.sh")
    parser.add_argument("--dry-run", action="store_true", help="print the proposal and write nothing")
    chosen = parser.parse_args(arguments)
    try:
        proposed = proposed_by(Report(chosen.result).read())
    except (Unfit, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(lines(proposed)))
    if not chosen.dry_run:
        TARGET.write_text(text_of(*merged(proposed)))
        print(f"written: {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
