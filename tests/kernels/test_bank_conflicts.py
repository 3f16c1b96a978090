"""Accesses to shared memory do not wait for each other's banks, in the kernels themselves (`bank_conflicts.cpp`).

ldmatrix and stmatrix are counted by the emulator wherever kernels run on it (`test_cuda_counts.py`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csrc.build.plan import COMMON, CSRC, EMULATED
from csrc.build.settings import read
from csrc.build.toolchain import Missing, find_cxx

CXX = find_cxx(read())
pytestmark = [
    pytest.mark.skipif(isinstance(CXX, Missing), reason="no C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="--wrap and the sanitizer's calls are those of Linux"),
]
FLAGS = (*COMMON, *EMULATED, "-O1", "-DTSS_EMULATED", "-pthread")
PROGRAM = Path(__file__).with_name("bank_conflicts.cpp")
COPIES = "_ZN3tss8emulator12promise_copyEPvPKvjj"
Found = dict[tuple[str, str, int], int]

GATES, RESULT, SUMS, HIDDEN = ("read", 4), ("read", 16), ("write", 4), ("write", 16)
TILES, WORDS = ("copy", 16), ("copy", 4)
PRODUCT = (GATES, RESULT, TILES, WORDS)
# What each kernel does to shared memory beside ldmatrix, stmatrix and wgmma.
KINDS = {
    "small": PRODUCT,
    "small_transposed": PRODUCT,
    "wide_groups": PRODUCT,
    "wide_groups_transposed": PRODUCT,
    "adapter": (*PRODUCT, SUMS, HIDDEN),
    "adapter_backward": (*PRODUCT, SUMS, HIDDEN),
    "scores_grad": (TILES,),
    "float32": (("read", 4), ("write", 4)),
    "importance": (("read", 8), ("write", 8)),
}
# Sums of hidden units are read as two halves of eight neighbours, which lie 32 bytes apart, once a block: 64 rows of 64
# units take two turns for each. Choosing halves by lanes would take more than it saves.
TWO_TURNS = 64 * 64 * 4 // 128
EXPECTED: Found = {(kernel, *kind): 0 for kernel, kinds in KINDS.items() for kind in kinds} | {
    ("adapter", *RESULT): TWO_TURNS,
    ("adapter_backward", *RESULT): TWO_TURNS,
}


def further_turns(csrc: Path, folder: Path) -> Found:
    """By kernel, kind of access and its bytes: turns of the banks over what the widths of the accesses need."""
    assert not isinstance(CXX, Missing)
    names, include = ("fibers", "asynchronous", "counts"), f"-I{csrc}"
    sources = [str(CSRC / "emulator" / f"{name}.cpp") for name in names]
    subprocess.run([CXX.path, *FLAGS, include, "-c", *sources], check=True, cwd=folder)
    watched = folder / "program.o"
    # Every access becomes a call; the sanitizer's library is not linked.
    subprocess.run([CXX.path, *FLAGS, include, "-fsanitize=thread", "-c", str(PROGRAM), "-o", str(watched)], check=True)
    objects = [str(watched), *(str(folder / f"{name}.o") for name in names)]
    program = folder / "program"
    subprocess.run([CXX.path, "-pthread", f"-Wl,--wrap={COPIES}", *objects, "-o", str(program)], check=True)
    said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    line = r"^(\w+) (\w+) (\d+) bytes: (\d+) accesses, (\d+) further turns$"
    lines = re.findall(line, said, flags=re.MULTILINE)
    assert all(int(accesses) > 0 for *_, accesses, _ in lines)
    return {(kernel, kind, int(size)): int(further) for kernel, kind, size, _, further in lines}


def test_no_kernel_waits_for_memory_banks(tmp_path):
    assert further_turns(CSRC, tmp_path) == EXPECTED


# The file, the text, what replaces it, and where it must show.
FAULTS = (
    ("tile.cuh", "(m + lane / 4) * words_of_row", "lane / 4 * 4 * words_of_row", ("small", *GATES)),
    ("tile.cuh", "tile + at + threadIdx.x", "tile + at + threadIdx.x % 32 * 32 % 128", ("wide_groups", *WORDS)),
    ("adapter_tile.cuh", "pitch = Hidden + 4", "pitch = Hidden", ("adapter", *SUMS)),
    ("float32_product.cuh", "float32_tile + 2", "float32_tile + 4", ("float32", "write", 4)),
)


def test_layouts_that_wait_are_noticed(tmp_path):
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("build", "__pycache__"))
    for file, right, wrong, _ in FAULTS:
        source = csrc / "cuda" / file
        text = source.read_text()
        assert right in text, f"the kernels no longer say {right!r}: plant another fault"
        source.write_text(text.replace(right, wrong))
    found = further_turns(csrc, tmp_path)
    for *_, where in FAULTS:
        assert found[where] > EXPECTED[where], where
