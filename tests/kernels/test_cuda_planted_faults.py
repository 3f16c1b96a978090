"""The emulator notices a missing wait, fence or barrier: copies of the kernels with one fault each."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from csrc.build.plan import COMMON, CSRC, EMULATED
from csrc.build.settings import read
from csrc.build.toolchain import Missing, find_cxx

CXX = find_cxx(read())
pytestmark = pytest.mark.skipif(isinstance(CXX, Missing), reason="no C++ compiler")
FLAGS = (*COMMON, *EMULATED, "-O1", "-DTSS_EMULATED", "-pthread")
PROGRAM = Path(__file__).with_name("emulated_kernels.cpp")
PRODUCTS = {"groups", "mma", "ranges"}
KERNELS = PRODUCTS | {"adapter", "many_tasks", "scores_grad"}

RING, PRODUCT, ADAPTER = "wait_for_copies<stages - 2>();", "warpgroup_wait<0>();", "gated_adapter.cuh"
FENCE = "    if constexpr (for_warpgroups) fence_shared_for_warpgroup();\n"
BARRIER = "    __syncthreads();  // the tile is there for all, and all are done with the one before\n"
LISTED = "p.length : -1;\n        }\n        __syncthreads();\n"
CHUNK = "place += of_block;\n        __syncthreads();\n"
STAGED = "(sums, at.b);\n        __syncthreads();\n"
# What is wrong: the file, the text that is replaced, what replaces it, and the kernels whose results must show it.
FAULTS = {
    "copies are not waited for": ("product.cuh", RING, "", KERNELS),
    "copies are waited for one tile late": ("product.cuh", RING, "wait_for_copies<stages - 1>();", KERNELS),
    "no barrier after copies": ("product.cuh", BARRIER, "", KERNELS),
    "no barrier before results are stored": (ADAPTER, STAGED, "(sums, at.b);\n", {"adapter"}),
    "no fence of copies": ("product.cuh", FENCE, "", {"groups"}),
    "a fence after the barrier": ("product.cuh", f"{FENCE}#endif\n{BARRIER}", f"#endif\n{BARRIER}{FENCE}", {"groups"}),
    "products are not waited for": ("product.cuh", PRODUCT, "", {"groups"}),
    "the last products are not waited for": ("product.cuh", PRODUCT, "warpgroup_wait<1>();", {"groups"}),
    "products are not committed": ("product.cuh", "warpgroup_commit();", "", {"groups"}),
    "a range sums to the end": ("gated_linear.cuh", "ranges ? min(depth", "false ? min(depth", {"ranges"}),
    "a range begins too early": ("gated_linear.cuh", "range_tiles * k_tile;\n", "range_tiles;\n", {"ranges"}),
    "ranges share a place": ("gated_linear.cuh", "(range * rows + first_row)", "first_row", {"ranges"}),
    "no barrier after rows are listed": ("multi_task.cuh", LISTED, LISTED.partition("        __")[0], {"many_tasks"}),
    "no barrier before warps are counted": ("multi_task.cu", CHUNK, CHUNK.partition("        __")[0], {"many_tasks"}),
    "registers are not fenced": ("product.cuh", "warpgroup_arrive();", "", {"groups"}),
}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> list[str]:
    """The emulator's own objects, compiled once."""
    folder, names = tmp_path_factory.mktemp("emulator"), ("fibers", "asynchronous", "counts")
    sources = [str(CSRC / "emulator" / f"{name}.cpp") for name in names]
    subprocess.run([CXX.path, *FLAGS, f"-I{CSRC}", "-c", *sources], check=True, cwd=folder)
    return [str(folder / f"{name}.o") for name in names]


def results(csrc: Path, emulator: list[str], folder: Path, kernels: set[str]) -> dict[str, list[tuple[int, int]]]:
    """By kernel, how many elements are not right, and how many bank conflicts there were, for each order of threads."""
    only = ["-DTSS_ONLY_PRODUCTS"] if kernels <= PRODUCTS else []
    program = folder / "program"
    subprocess.run([CXX.path, *FLAGS, *only, f"-I{csrc}", "-o", str(program), str(PROGRAM), *emulator], check=True)
    said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    found: dict[str, list[tuple[int, int]]] = {}
    line = r"^(\w+) \d+ right (\d+) NaN (\d+) wrong (\d+) conflicts$"
    for name, nan, wrong, conflicts in re.findall(line, said, flags=re.MULTILINE):
        found.setdefault(name, []).append((int(nan) + int(wrong), int(conflicts)))
    assert set(found) == (PRODUCTS if only else KERNELS)
    return found


def faulty(folder: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of csrc with one text replaced in one file of kernels."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("build", "__pycache__"))
    source = csrc / "cuda" / file
    text = source.read_text()
    assert right in text, f"the kernels no longer say {right!r}: plant another fault"
    source.write_text(text.replace(right, wrong))
    return csrc


def test_the_kernels_are_right(emulator, tmp_path):
    for name, orders in results(CSRC, emulator, tmp_path, KERNELS).items():
        assert orders == [(0, 0), (0, 0)], name


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows(fault, emulator, tmp_path):
    file, right, wrong, where = FAULTS[fault]
    csrc = faulty(tmp_path, file, right, wrong)
    for name, orders in results(csrc, emulator, tmp_path, where).items():
        assert any(bad for bad, _ in orders) == (name in where), name


def test_bank_conflicts_show(emulator, tmp_path):
    csrc = faulty(tmp_path, "tile.cuh", "(column / chunk_elements ^ (row & 7)) * 16", "column / chunk_elements * 16")
    found = results(csrc, emulator, tmp_path, KERNELS)
    assert all(conflicts > 0 for orders in found.values() for _, conflicts in orders)
    assert found["mma"][0][0] == 0  # as right as before, only slower
