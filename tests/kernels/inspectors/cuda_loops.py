"""What a warp executes for each k tile in the loops of the CUDA C++ products, read off the built extension module.

    python -m tests.kernels.inspectors.cuda_loops                   # print the table
    python -m tests.kernels.inspectors.cuda_loops --write FOLDER    # write it to FOLDER/nvcc-<version>-loops.md

Counted on the way of tiles that lie inside their matrices, for bfloat16 and sm_90a: all instructions, and of them the
asynchronous copies and the products (instructions of tensor cores).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.kernels.inspectors.cuda_machine_code import Kernel, kernels_of, turns
from tests.kernels.inspectors.cuda_resources import built_module, cuobjdump, version
from tests.kernels.inspectors.resource_table import Rows, as_markdown, numbered

LOOPS = (b"gated_product_kernel", b"gated_adapter_kernel", b"scores_grad_kernel")
ARCHITECTURE = "sm_90a"


def kernels_with_loops(module: Path) -> list[Kernel]:
    """The kernels of the module's files that have such loops, compiled for Hopper; none where it has no such code."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        # By files: disassembling the whole module takes half a minute.
        command = [str(cuobjdump()), "-xelf", ARCHITECTURE, str(module.resolve())]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        for file in sorted(Path(folder).iterdir()):
            if f".{ARCHITECTURE}." in file.name and any(name in file.read_bytes() for name in LOOPS):
                found += kernels_of(file)
    return found


def short(name: str) -> tuple[str, str] | None:
    """A kernel's name and what follows bfloat16 in its parameters; None for other kernels and types, and for those of
    operands on any boundary, whose elements are loaded one by one."""
    plain = re.sub(r"tss::|__nv_|^void ", "", name)
    match = re.match(r"(gated_product|gated_adapter|scores_grad)_kernel<bfloat16, (.*?)>\(", plain)
    if match is None or (match[1] != "gated_adapter" and not match[2].endswith("true")):
        return None
    return match[1], match[2]


def _lines(kernels: list[Kernel]) -> Iterator[tuple[tuple[str, str, str], dict[str, str]]]:
    for kernel in sorted(kernels):
        names = short(kernel.name)
        for number, turn in enumerate(turns(kernel) if names and turns(kernel)[0].copies else ()):
            assert names is not None
            which = f", product {number + 1}" if names[0] == "gated_adapter" else ""
            cells = {"kernel": names[0], "launch": ""} | {name: str(value) for name, value in turn._asdict().items()}
            yield (ARCHITECTURE, names[0], names[1] + which), cells


def rows_of(kernels: list[Kernel]) -> Rows:
    """The lines of the table; those whose operands are not copied asynchronously are left out."""
    return numbered(_lines(kernels))


def to_text(rows: Rows) -> str:
    """The table as Markdown."""
    title = f"What a warp executes for each k tile, by nvcc {version()}"
    return as_markdown(
        rows, title, "python -m tests.kernels.inspectors.cuda_loops --write", "tests/kernels/test_cuda_loops.py"
    )


def main() -> int:
    """The command line; see this file's beginning."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the table of this nvcc version there")
    options = parser.parse_args()
    module = built_module()
    if module is None:
        print("tss_kernels._cuda was not built: see python -m tss_kernels", file=sys.stderr)
        return 1
    rows = rows_of(kernels_with_loops(module))
    if options.write is None:
        print(to_text(rows))
    else:
        path = options.write / f"nvcc-{version()}-loops.md"
        path.write_text(to_text(rows))
        print(f"wrote {path}: {len(rows)} loops")
    return 0


if __name__ == "__main__":
    sys.exit(main())
