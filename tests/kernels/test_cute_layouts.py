"""Layouts, fragments, masks and descriptors are CuTe's: the kernels' own functions, compiled for the CPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from csrc.build.plan import COMMON, CSRC, EMULATED
from csrc.build.settings import read
from csrc.build.toolchain import Missing, find_cxx
from tests.kernels.inspectors.cute_layouts import header

CXX = find_cxx(read())
pytestmark = pytest.mark.skipif(isinstance(CXX, Missing), reason="no C++ compiler")
PROGRAM = Path(__file__).with_name("cute_comparison.cpp")
TILE, STORE = "cuda/tile.cuh", "emulator/instructions.h"
FAULTS = {
    "other swizzle": (TILE, "(row & 7)) * 16", "(row & 3)) * 16", "two panels"),
    "neighbouring gates": (TILE, "shift = 6 - 2 * (lane % 4)", "shift = 6 - 2 * (lane % 4) + 1", "mask_a"),
    "exchanged sums": ("cuda/product.cuh", "8 * (j % 4 / 2)", "8 * (j % 2)", "sums"),
    "other stride": (STORE, "std::uint64_t(64) << 32", "std::uint64_t(128) << 32", "descriptor"),
    "rows stored": (STORE, "lanes[4 * r + column / 2]", "lanes[4 * column + r / 2]", "stmatrix"),
}


def compared(csrc: Path, folder: Path) -> str:
    (folder / "cute_tables.h").write_text(header())
    emulator = [str(csrc / "emulator" / f"{name}.cpp") for name in ("fibers", "asynchronous", "counts")]
    flags = [*COMMON, *EMULATED, "-O0", "-DTSS_EMULATED", f"-I{csrc}", f"-I{folder}", "-pthread"]
    subprocess.run([CXX.path, *flags, "-o", str(folder / "program"), str(PROGRAM), *emulator], check=True)
    return subprocess.run([str(folder / "program")], check=False, capture_output=True, text=True).stdout


def test_all_of_it_is_equal(tmp_path):
    said = compared(CSRC, tmp_path)
    assert said.endswith(" equal, 0 different\n"), said
    assert int(said.split()[0]) > 500_000


@pytest.mark.parametrize("fault", FAULTS)
def test_a_difference_is_named(fault, tmp_path):
    file, right, wrong, says = FAULTS[fault]
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("build", "__pycache__"))
    text = (csrc / file).read_text()
    assert right in text, f"the kernels no longer say {right!r}: plant another fault"
    (csrc / file).write_text(text.replace(right, wrong))
    assert f"{says}: " in compared(csrc, tmp_path)
