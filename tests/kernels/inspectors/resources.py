"""What each Triton kernel takes of a GPU, found without one: registers, shared memory, instructions, and their limits.

    python -m tests.kernels.inspectors.resources                    # compile every launch and print what it takes
    python -m tests.kernels.inspectors.resources --write FOLDER     # write it to FOLDER/triton-<version>.md
    python -m tests.kernels.inspectors.resources --launches FILE    # other kernels: FILE defines KERNELS and OPERATIONS

Ends with 1 if a launch breaks a limit. Limits hold for every Triton version; a written table shows, line by line, what
moved since. `triton_cases.py` beside this file says which launches are compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.kernels.inspectors.resource_table import Rows, as_markdown, differences, from_text, numbered

MODULE = "tests.kernels.inspectors.resources"
ROOT = Path(__file__).resolve().parents[3]  # where that module is found
REWRITE = "make resources"
# Bytes of shared memory that one block may use.
SHARED_MEMORY = MappingProxyType({90: 232_448, 80: 166_912, 86: 101_376})
# What a multiprocessor has: registers, bytes of shared memory (each program takes 1 KB more than it asks for), warps,
# programs. https://docs.nvidia.com/cuda/cuda-c-programming-guide, "Compute Capabilities".
MULTIPROCESSOR = MappingProxyType(
    {90: (65536, 233_472, 64, 32), 80: (65536, 167_936, 64, 32), 86: (65536, 102_400, 48, 16)}
)
UNITS = MappingProxyType({90: "HGMMA", 80: "HMMA", 86: "HMMA"})


class Case(NamedTuple):
    """One call of an operation's host functions.

    Attributes:
        aligned: all rows start on 16-byte boundaries, so that 16 bytes may be loaded and stored at once.
        everywhere: its products are compiled for all architectures, each with the tiles of its own table; the rest is
            compiled for sm_90 alone.
    """

    label: str
    call: Callable[[], object]
    aligned: bool = False
    everywhere: bool = False


class Kernel(NamedTuple):
    """What a kernel must show in its machine code.

    Attributes:
        product: 16-bit operands are multiplied on tensor cores.
        masked: its left operand is masked in registers and may not go back to shared memory (sm_90).
        wide: aligned rows are loaded and stored 16 bytes at a time.
    """

    product: bool = False
    masked: bool = False
    wide: bool = False


class Resources(NamedTuple):
    """What one launch takes; instructions are counted as they stand in the machine code, not as often as they run.

    Attributes:
        loop_products: tensor-core instructions in the loops that have any; waits, loop_stores, loop_barriers: in the
            same loops, waits for such instructions, stores to shared memory, and barriers.
        programs: how many run on a multiprocessor at a time.
        serialised: in one of these loops every tensor-core instruction is waited for by itself.
    """

    architecture: int
    kernel: str
    launch: str
    constants: str
    warps: int
    stages: int
    shared: int
    registers: int
    stack: int
    spills: int
    tensor_core: int
    a_registers: int
    a_shared: int
    async_copies: int
    wide_loads: int
    wide_stores: int
    narrow_stores: int
    loop_products: int
    waits: int
    loop_stores: int
    loop_barriers: int
    programs: int
    aligned: bool
    fast: bool
    serialised: bool


COLUMNS = tuple(name for name in Resources._fields if name not in ("architecture", "aligned", "fast", "serialised"))


def violations(seen: Resources, kernel: Kernel) -> list[str]:
    """The limits that a launch breaks, in words; they hold whatever the Triton version."""
    found = []
    if seen.stack or seen.spills:
        found.append(f"registers spill: {seen.stack} bytes of stack, {seen.spills} local loads and stores")
    limit = SHARED_MEMORY[seen.architecture]
    if seen.shared > limit:
        found.append(f"shared memory {seen.shared} is over the {limit} bytes of a block")
    if kernel.product and seen.fast:
        if not seen.tensor_core:
            found.append(f"no tensor core: no {UNITS[seen.architecture]} instruction")
        if seen.stages > 1 and seen.aligned and not seen.async_copies:
            found.append(f"{seen.stages} stages, but no asynchronous copy")
    if kernel.masked and seen.fast and seen.architecture >= 90 and (seen.a_shared or not seen.a_registers):
        found.append(f"masked operand: {seen.a_registers} products from registers, {seen.a_shared} from shared memory")
    if kernel.product and seen.serialised:
        found.append(f"serialised: {seen.waits} waits for {seen.loop_products} products in loops")
    if kernel.wide and seen.aligned and not (seen.wide_loads and seen.wide_stores):
        found.append(f"{seen.wide_loads} loads and {seen.wide_stores} stores of 16 bytes, both must be there")
    return [f"sm_{seen.architecture} {seen.kernel}, {seen.launch}: {text}" for text in found]


def programs_of(architecture: int, warps: int, registers: int, shared: int) -> int:
    """How many programs of a launch run on one multiprocessor at a time."""
    all_registers, all_shared, all_warps, most = MULTIPROCESSOR[architecture]
    # A warp gets registers by 256, eight for each of its threads.
    of_program = -(-registers // 8) * 8 * 32 * warps
    return min(all_registers // of_program, all_shared // (shared + 1024), all_warps // warps, most)


def all_violations(launches: Iterable[Resources], kernels: dict[str, Kernel]) -> list[str]:
    """The limits that any launch breaks; a kernel that `kernels` lacks counts as one."""
    found = []
    for seen in launches:
        if seen.kernel in kernels:
            found += violations(seen, kernels[seen.kernel])
        else:
            found.append(f"{seen.kernel}: not in KERNELS, which says what a kernel must show")
    return found


def kernels_and_operations(launches_file: Path | None = None) -> tuple[dict[str, Kernel], dict[str, Any]]:
    """KERNELS and OPERATIONS of a file of launches, by default of this package's."""
    names = runpy.run_path(str(launches_file or Path(__file__).with_name("triton_cases.py")))
    return names["KERNELS"], names["OPERATIONS"]


def measure(launches_file: Path | None = None, architectures: Sequence[int] = tuple(SHARED_MEMORY)) -> list[Resources]:
    """Compiles every launch in a process without Triton's interpreter. Raises RuntimeError if that fails."""
    command = [sys.executable, "-m", MODULE, "--json", "--architectures", *map(str, architectures)]
    command += [] if launches_file is None else ["--launches", str(launches_file.resolve())]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return [Resources(**json.loads(line)) for line in done.stdout.splitlines()]


def rows_of(launches: Iterable[Resources]) -> Rows:
    """The lines of a table by architecture, kernel and launch; launches that share all three are numbered."""
    return numbered(((f"sm_{seen.architecture}", seen.kernel, seen.launch), _cells(seen)) for seen in launches)


def _cells(seen: Resources) -> dict[str, str]:
    return {name: str(getattr(seen, name)) for name in COLUMNS}


def to_text(rows: Rows, version: str) -> str:
    """A table as Markdown, one line per launch."""
    return as_markdown(
        rows, f"What every kernel takes of a GPU, by Triton {version}", REWRITE, "tests/kernels/test_triton_compile.py"
    )


def table_path(folder: Path, version: str | None = None) -> Path:
    """Where the table of a Triton version lies, the installed one's by default."""
    return folder / f"triton-{version or triton_version()}.md"


def triton_version() -> str:
    """The installed version without a local part such as +git."""
    return metadata.version("triton").split("+")[0]


def main() -> int:
    """The command line; see this file's beginning."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the table of this Triton version there")
    parser.add_argument("--launches", type=Path, metavar="FILE", help="a Python file with KERNELS and OPERATIONS")
    parser.add_argument("--architectures", type=int, nargs="+", choices=SHARED_MEMORY, default=SHARED_MEMORY)
    parser.add_argument("--json", action="store_true", help="print one JSON object per launch, judge nothing")
    options = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        return subprocess.call([sys.executable, "-m", MODULE, *sys.argv[1:]])
    from tests.kernels.inspectors import triton_compile

    kernels, operations = kernels_and_operations(options.launches)
    launches = [one for number in options.architectures for one in triton_compile.record(number, kernels, operations)]
    found = triton_compile.inspect(launches)
    if options.json:
        print(*(json.dumps(seen._asdict()) for seen in found), sep="\n")
        return 0
    text = to_text(rows_of(found), triton_version())
    if options.write is None:
        print(text)
    else:
        options.write.mkdir(parents=True, exist_ok=True)
        path = table_path(options.write)
        moved = differences(from_text(path.read_text()) if path.exists() else {}, rows_of(found))
        path.write_text(text)
        print(*moved, f"wrote {path}: {len(found)} launches, {len(moved)} moved", sep="\n")
    broken = all_violations(found, kernels)
    print(*broken, f"{len(found)} launches, {len(broken)} limits broken", sep="\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
