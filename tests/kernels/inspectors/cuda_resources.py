"""What each CUDA C++ kernel takes of a GPU, read off the built extension module, and the limits on it.

    python -m tests.kernels.inspectors.cuda_resources                   # print the table
    python -m tests.kernels.inspectors.cuda_resources --write FOLDER    # write it to FOLDER/nvcc-<version>.md

Ends with 1 if a kernel breaks a limit. Needs cuobjdump, which comes with the CUDA toolkit and with Triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.kernels.inspectors.resource_table import Rows, as_markdown, differences, from_text, numbered
from tss_kernels.backends.registry import build_record

MODULE = "tests.kernels.inspectors.cuda_resources"
# Bytes of shared memory that one block may use, in both; 101,376 on the smaller chips that run code for sm_80.
SHARED_MEMORY = 166_912
# Instructions that are counted, by the column they are counted in.
COUNTED = {
    "hmma": r"HMMA\.",
    "hgmma": r"HGMMA\.",
    "async_copies": r"LDGSTS\.\S*128",
    "wide_loads": r"LDG\.\S*128",
    "wide_stores": r"STG\.\S*128",
    "spills": r"(?:LDL|STL)\b",
}


# Kernels that load and store 16 bytes at a time where addresses allow it, and those that store so.
WIDE = (("mask_kernel", ""), ("adamw_kernel", "true"))  # and how their parameters end then
STORES = ("gated_product_kernel", "gated_adapter_kernel")
# What a kernel leaves behind: results, or the error of a trap.
EFFECT = re.compile(r"(?:STG|ST|RED|REDG|ATOM|ATOMG|BPT\.TRAP)\b")
# After the address, and a predicate if there is one.
INSTRUCTION = re.compile(r"\*/\s+(?:@!?U?P\d+ )?([A-Z][\w.]*)")
# A tile of Hopper's warpgroups; on other architectures its kernels only trap.
GROUPS = re.compile(r"ProductTile<[^>]*true>")


class Kernel(NamedTuple):
    """One kernel for one architecture; instructions are counted as they stand, not as often as they run."""

    architecture: str
    name: str
    parameters: str
    registers: int
    stack: int
    counts: dict[str, int]
    does_nothing: bool = False


def cuobjdump() -> str | None:
    """The tool's path: the CUDA toolkit's, or the one that comes with Triton."""
    found = shutil.which("cuobjdump")
    spec = None if found else importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return found
    beside = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(beside) if beside.exists() else None


def _dump(tool: str, flag: str, module: Path) -> str:
    folders = f"{Path(tool).parent}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"  # it calls nvdisasm
    text = subprocess.run(
        [tool, flag, str(module)], check=True, capture_output=True, text=True, env={"PATH": folders}
    ).stdout
    return subprocess.run(["c++filt"], input=text, check=True, capture_output=True, text=True).stdout


def _parts(text: str, function: str) -> Iterator[tuple[str, str, str]]:
    """Architecture, kernel and what is said of it, kernel by kernel."""
    for by_architecture in re.split(r"^arch = ", text, flags=re.MULTILINE)[1:]:
        architecture = by_architecture.split("\n", 1)[0].strip()
        for part in re.split(function, by_architecture, flags=re.MULTILINE)[1:]:
            name, _, body = part.partition("\n")
            yield architecture, name.strip().rstrip(":"), body


def _short(function: str) -> tuple[str, str]:
    """The kernel's name and its template parameters, without namespaces and arguments."""
    plain = re.sub(r"tss::|\(anonymous namespace\)::|__nv_|^void ", "", function)
    plain = plain.replace("__half", "float16").replace("unsigned short", "16 bits").replace("unsigned int", "32 bits")
    match = re.match(r"(\w+)(?:<(.*)>)?\(", plain)
    assert match is not None, f"no kernel's name: {function}"
    return match[1], match[2] or ""


def read(module: Path) -> list[Kernel]:
    """Every kernel in an extension module. Raises FileNotFoundError without cuobjdump."""
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump was not found: install the CUDA toolkit or Triton")
    counts, idle = {}, {}
    for architecture, name, body in _parts(_dump(tool, "-sass", module), r"^\s*Function : "):
        instructions = Counter(INSTRUCTION.findall(body))
        counts[architecture, name] = {
            column: sum(often for instruction, often in instructions.items() if re.match(pattern, instruction))
            for column, pattern in COUNTED.items()
        }
        idle[architecture, name] = not any(map(EFFECT.match, instructions))
    kernels = []
    for architecture, name, body in _parts(_dump(tool, "-res-usage", module), r"^ Function "):
        fields = dict(re.findall(r"(REG|STACK):(\d+)", body))
        taken, key = (int(fields["REG"]), int(fields["STACK"])), (architecture, name)
        kernels.append(Kernel(architecture, *_short(name), *taken, counts[key], idle[key]))
    return sorted(kernels, key=lambda kernel: kernel[:3])


def only_traps(kernel: Kernel) -> bool:
    """Whether it is for Hopper alone, compiled for another architecture."""
    return GROUPS.search(kernel.parameters) is not None and kernel.architecture != "sm_90a"


def violations(kernel: Kernel) -> list[str]:
    """The limits that a kernel breaks, in words."""
    found, counts = [], kernel.counts
    if kernel.does_nothing:
        found.append("it does nothing: no result is stored, and no trap says so")
    if kernel.stack or counts["spills"]:
        found.append(f"registers spill: {kernel.stack} bytes of stack, {counts['spills']} local loads and stores")
    if "Tile<" in kernel.parameters and not only_traps(kernel):
        unit = "hgmma" if GROUPS.search(kernel.parameters) else "hmma"
        if not counts[unit]:
            found.append(f"no tensor core: no {unit.upper()} instruction")
        if kernel.parameters.endswith("true") and not counts["async_copies"]:
            found.append("rows are aligned, but nothing is copied 16 bytes at a time")
        if kernel.name in STORES and not counts["wide_stores"]:
            found.append("nothing is stored 16 bytes at a time")
    wide = any(kernel.name == name and kernel.parameters.endswith(end) for name, end in WIDE)
    if wide and not (counts["wide_loads"] and counts["wide_stores"]):
        found.append(f"{counts['wide_loads']} loads and {counts['wide_stores']} stores of 16 bytes, both must be there")
    return [f"{kernel.architecture} {kernel.name}<{kernel.parameters}>: {text}" for text in found]


def rows_of(kernels: Iterable[Kernel]) -> Rows:
    """The lines of the table."""
    return numbered(
        (
            (kernel.architecture, kernel.name, kernel.parameters),
            {"kernel": kernel.name, "launch": "", "registers": str(kernel.registers), "stack": str(kernel.stack)}
            | {column: str(count) for column, count in kernel.counts.items()},
        )
        for kernel in kernels
        if not only_traps(kernel)
    )


def built_module() -> Path | None:
    """The file of the extension module that is installed, or None."""
    spec = importlib.util.find_spec("tss_kernels._cuda")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def version() -> str:
    """nvcc's version as the build recorded it."""
    found = re.search(r"nvcc ([\d.]+)", str(build_record().get("_cuda", {}).get("how", "")))
    return found[1] if found else "unknown"


def shared_bytes(module: Any) -> dict[str, int]:
    """Bytes of shared memory that the launches of a loaded module ask for, by launch."""
    return dict(module.shared_bytes())


def to_text(rows: Rows) -> str:
    """The table as Markdown."""
    title = f"What every CUDA C++ kernel takes of a GPU, by nvcc {version()}"
    return as_markdown(rows, title, f"python -m {MODULE} --write", "tests/kernels/test_cuda_compile.py")


def main() -> int:
    """The command line; see this file's beginning."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the table of this nvcc version there")
    parser.add_argument("--module", type=Path, metavar="FILE", help="another module than the installed one")
    options = parser.parse_args()
    module = options.module or built_module()
    if module is None:
        print("tss_kernels._cuda was not built: see python -m tss_kernels", file=sys.stderr)
        return 1
    kernels = read(module)
    rows = rows_of(kernels)
    if options.write is None:
        print(to_text(rows))
    else:
        path = options.write / f"nvcc-{version()}.md"
        moved = differences(from_text(path.read_text()) if path.exists() else {}, rows)
        path.write_text(to_text(rows))
        print(*moved, f"wrote {path}: {len(rows)} kernels, {len(moved)} moved", sep="\n")
    broken = [text for kernel in kernels for text in violations(kernel)]
    print(*broken, f"{len(kernels)} kernels, {len(broken)} limits broken", sep="\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
