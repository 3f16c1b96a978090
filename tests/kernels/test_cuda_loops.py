"""What the loops of the CUDA C++ products execute for each k tile, and that Hopper's products run on unhindered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from csrc.build.plan import CSRC
from csrc.build.settings import read
from csrc.build.toolchain import Missing, find_nvcc
from tests.kernels.inspectors.cuda_loops import kernels_with_loops, rows_of
from tests.kernels.inspectors.cuda_machine_code import compiled, turns, waits_for_each_product
from tests.kernels.inspectors.cuda_resources import built_module, cuobjdump, version
from tests.kernels.inspectors.resource_table import differences, from_text

# Instructions of a warp for one k tile, by what a tile begins with: its copies, loads of fragments, masks and products,
# and some forty for addresses, the ring and the loop. Twice as many where each copy asks for its bounds.
LIMITS = {
    "ProductTile<64, 32": 260,
    "ProductTile<64, 128, 1": 530,
    "ProductTile<128, 128, 2": 530,
    "ProductTile<64, 128, 4": 245,
    "ProductTile<128, 128, 8": 215,
    "ProductTile<128, 64": 220,
    "bfloat16, AdapterTile<64, 128": 440,
    "bfloat16, AdapterTile<64, 64": 350,
    "bfloat16, AdapterTile<64, 32": 250,
    "bfloat16, AdapterTile<128, 64": 530,
    "bfloat16, AdapterTile<128, 32": 345,
    "float, AdapterTile": 600,  # rounded on the way
}
GROUPS = """#include "cuda/gated_linear.cuh"
using namespace tss;
template __global__ void tss::gated_product_kernel<bfloat16, ProductTile<64, 128, 4, 1, 3, true>, false, false, true>(
    const __grid_constant__ ProductOperands<bfloat16>);
"""


@pytest.fixture(scope="module")
def kernels():
    module = built_module()
    if module is None or cuobjdump() is None:
        pytest.skip("tss_kernels._cuda was not built, or cuobjdump was not found")
    found = kernels_with_loops(module)
    if not found:
        pytest.skip("not compiled for sm_90a")
    return found


def over(rows) -> list[str]:
    """The loops that execute more than their limit, in words."""
    found = []
    for (_, kernel, launch), cells in rows.items():
        limit = next(limit for start, limit in LIMITS.items() if launch.startswith(start))
        if int(cells["executed"]) > limit:
            found.append(f"{kernel} {launch}: {cells['executed']} instructions a k tile, {limit} are the limit")
    return found


def test_limits(kernels):
    rows = rows_of(kernels)
    assert len(rows) > 30
    assert not over(rows)


def test_nothing_moved_since_the_table_was_written(kernels):
    path = Path(__file__).with_name("resources") / f"nvcc-{version()}-loops.md"
    if not path.exists():
        pytest.skip(f"no table for nvcc {version()}: `make resources` adds it; limits are tested")
    moved = differences(from_text(path.read_text()), rows_of(kernels))
    assert not moved, "\n".join([f"moved since {path.name} was written; `make resources` rewrites it", *moved])


def test_products_of_warpgroups_do_not_wait_for_each_other(kernels):
    assert sum(kernel.has("HGMMA") for kernel in kernels) >= 4
    assert not [kernel.name for kernel in kernels if waits_for_each_product(kernel)]


# Both compute the same: only a count of instructions shows them.
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("product.cuh", "        warpgroup_commit();\n        warpgroup_wait<0>();", ""),
        ("gated_linear.cuh", "if (aligned && tile < whole)", "if (tile < 0)"),
    ],
    ids=["a wait after each product", "bounds asked for each copy"],
)
def test_what_hinders_is_noticed(file, right, wrong, tmp_path):
    nvcc = find_nvcc(read())
    if isinstance(nvcc, Missing) or cuobjdump() is None:
        pytest.skip("no nvcc or no cuobjdump")
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("build", "__pycache__"))
    text = (csrc / "cuda" / file).read_text()
    assert right in text, f"the kernels no longer say {right!r}: plant another fault"
    text = text.replace(right, wrong)
    if not wrong:
        step = "shared_descriptor(stage.b + step * k_step * 2));\n"
        assert step in text
        text = text.replace(step, f"{step}            warpgroup_commit();\n            warpgroup_wait<0>();\n")
    (csrc / "cuda" / file).write_text(text)
    (kernel,) = compiled(nvcc.path, GROUPS, "90a", "90a", tmp_path, csrc)
    (turn,) = turns(kernel)
    limit = LIMITS["ProductTile<64, 128, 4"]
    assert waits_for_each_product(kernel) == (not wrong)
    assert (turn.executed > limit) == bool(wrong)
