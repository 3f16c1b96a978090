"""What each kernel for the CPU executes by an element, counted by valgrind: equal in every run, whatever else runs.

    python -m tests.kernels.inspectors.instruction_counts                   # print the table
    python -m tests.kernels.inspectors.instruction_counts --write FOLDER    # write it to FOLDER/callgrind-<compiler>.md

Run from a checkout: csrc/build compiles the program that is counted, from the sources of the extension module. valgrind
runs code for x86-64 up to AVX2, so AVX-512 is not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.kernels.inspectors.resource_table import Rows, as_markdown, differences, from_text, numbered

MODULE = "tests.kernels.inspectors.instruction_counts"
COUNTED = "counted"  # the function of csrc/counting/native.cpp that calls a kernel
EVENTS = ("instructions", "loads", "stores")
# By so much two releases of one compiler may differ; the counts of one of them do not differ at all.
MARGIN = 0.02


class Count(NamedTuple):
    """What one call of a kernel for `elements` elements, in so many rows, executed."""

    instruction_set: str
    kernel: str
    launch: str
    rows: int
    elements: int
    instructions: int
    loads: int
    stores: int

    def each(self, event: str) -> float:
        """The number of one of EVENTS by an element."""
        return getattr(self, event) / self.elements


def obstacle() -> str | None:
    """What keeps kernels from being counted here and what would change that, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the tables are of Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    return None if shutil.which("valgrind") else "valgrind was not found: install the package valgrind"


def measure(program: Path) -> tuple[str, list[Count]]:
    """The compiler, such as gcc-12, and the counts of every call, by the program `csrc.build native-counted`.

    Raises RuntimeError with what was printed where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", "--cache-sim=yes", f"--toggle-collect={COUNTED}", f"--dump-after={COUNTED}",
            f"--callgrind-out-file={folder}/out", str(program),
        ]  # fmt: skip
        # Nothing that is preloaded or chosen by a variable is counted with it.
        kept = {name: os.environ[name] for name in ("PATH", "VALGRIND_LIB", "TMPDIR") if name in os.environ}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
        if done.returncode != 0:
            raise RuntimeError(f"valgrind ended with {done.returncode}:\n{done.stderr.strip()}")
        compiler, *calls = done.stdout.splitlines()
        return compiler, [_count(call, Path(f"{folder}/out.{part}")) for part, call in enumerate(calls, 1)]


def _count(call: str, file: Path) -> Count:
    """A line of the program with the file that callgrind wrote after that call."""
    fields = dict(line.split(": ", 1) for line in file.read_text().splitlines() if ": " in line)
    numbers = dict(zip(fields["events"].split(), map(int, fields["totals"].split()), strict=False))  # no last zeros
    instruction_set, kernel, launch, rows, elements = call.split("\t")
    events = numbers["Ir"], numbers["Dr"], numbers["Dw"]
    return Count(instruction_set, kernel, launch, int(rows), int(elements), *events)


def rows_of(counts: Iterable[Count]) -> Rows:
    """The lines of the table: numbers by an element, of the calls with the most rows."""
    counts = list(counts)
    most = max(count.rows for count in counts)
    return numbered(
        (count[:3], {"kernel": count.kernel, "launch": count.launch} | {e: f"{count.each(e):.3f}" for e in EVENTS})
        for count in counts
        if count.rows == most
    )


def beyond_margin(old: Rows, new: Rows) -> tuple[list[str], list[str]]:
    """Numbers that grew and that fell by more than the margin, one line each; of the rows that both have."""
    grew, fell = [], []
    for key in (key for key in old if key in new):
        for event in EVENTS:
            before, after = float(old[key][event]), float(new[key][event])
            line = f"{key[0]} {key[1]} ({key[2]}): {event} by an element {before:.3f} -> {after:.3f}"
            if after > before * (1 + MARGIN):
                grew.append(line)
            elif after < before * (1 - MARGIN):
                fell.append(line)
    return grew, fell


def to_text(compiler: str, rows: Rows) -> str:
    """The table as Markdown."""
    title = f"What every kernel for the CPU executes by an element, by {compiler.replace('-', ' ')}"
    how = "Counted by valgrind, one thread."
    return as_markdown(rows, title, f"python -m {MODULE} --write", "tests/kernels/test_instruction_counts.py", how)


def main() -> int:
    """The command line; see this file's beginning."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the table of this compiler there")
    options = parser.parse_args()
    if (why := obstacle()) is not None:
        print(why, file=sys.stderr)
        return 1
    from csrc.build.variants import ROOT, built  # of a checkout, not of an installation

    compiler, counts = measure(built("native-counted", ROOT / "build"))
    rows = rows_of(counts)
    if options.write is None:
        print(to_text(compiler, rows))
        return 0
    path = options.write / f"callgrind-{compiler}.md"
    moved = differences(from_text(path.read_text()) if path.exists() else {}, rows)
    path.write_text(to_text(compiler, rows))
    print(*moved, f"wrote {path}: {len(rows)} launches, {len(moved)} moved", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
