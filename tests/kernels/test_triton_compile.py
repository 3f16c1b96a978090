"""Every Triton launch is compiled without a GPU and held to limits, and to the table of what it took before."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

import tss_kernels
from tests.kernels.inspectors.machine_code import loops
from tests.kernels.inspectors.resources import (
    REWRITE,
    SHARED_MEMORY,
    Kernel,
    all_violations,
    differences,
    from_text,
    kernels_and_operations,
    measure,
    programs_of,
    rows_of,
    table_path,
    to_text,
    triton_version,
    violations,
)
from tss_kernels.backends import tables
from tss_kernels.gated_adapter import triton as adapter

TABLES = Path(__file__).with_name("resources")
BAD = Path(__file__).with_name("bad_launches.py")


@pytest.fixture(scope="module")
def seen():
    return measure()


# Launches known to break a limit, and what it costs; one that no longer does must leave this list.
KNOWN = {
    "sm_90 partial_kernel, tf32 512 x 1024 -> 64": "tf32 is summed along memory alone, so elements are copied singly",
}


def test_limits(seen):
    broken = all_violations(seen, kernels_and_operations()[0])
    new = [text for text in broken if text.split(": ")[0] not in KNOWN]
    assert not new, "\n".join(new)
    assert {text.split(": ")[0] for text in broken} == set(KNOWN), "a known violation is gone: take it out of KNOWN"


def test_nothing_moved_since_the_table_was_written(seen):
    path = table_path(TABLES)
    if not path.exists():
        have = ", ".join(sorted(file.stem.removeprefix("triton-") for file in TABLES.glob("triton-*.md")))
        pytest.skip(f"no table for Triton {triton_version()}, only for {have}: `{REWRITE}` adds it; limits are tested")
    moved = differences(from_text(path.read_text()), rows_of(seen))
    assert not moved, "\n".join([f"moved since {path.name} was written; `{REWRITE}` rewrites it", *moved])


def test_every_kernel_is_compiled(seen):
    """Every `@triton.jit` function in the package whose name ends in _kernel is launched somewhere."""
    package = Path(tss_kernels.__file__).parent
    sources = "\n".join(path.read_text() for path in package.glob("*/triton*.py"))
    kernels = set(re.findall(r"@triton\.jit\s+def (\w+_kernel)\(", sources))
    assert len(kernels) >= 10
    assert {one.kernel for one in seen if one.architecture == 90} == kernels


def launched(seen, architecture, kernel, float32):
    """What one kernel was compiled with: the constants' values, warps and stages."""
    return {
        (*map(int, re.findall(r"\b(?:OUT|IN|ROWS|HIDDEN|FEATURES)=(\d+)", one.constants)), one.warps, one.stages)
        for one in seen
        if (one.architecture, one.kernel) == (architecture, kernel) and one.launch.startswith("float32") == float32
    }


KERNEL_OF = {"forward": "forward_kernel", "input_grad": "input_grad_kernel", "scores_grad": "partial_kernel"}


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_tile_of_the_products_is_compiled(seen, name):
    """All tiles in the tables but those of shape classes that go to the vendor's product at any number of rows."""
    table = tables.TABLES[name]
    missing = []
    for (product, kind, width), tiles in table.tiles.items():
        ends = [c.rows for key, c in table.crossovers.items() if key[:3] == (product, kind, width != "unaligned")]
        if ends and max(ends) == 0:
            continue
        compiled = launched(seen, int(name.removeprefix("sm_")), KERNEL_OF[product], kind == "float32")
        missing += [(product, kind, width, tile) for tile in tiles if tuple(tile) not in compiled]
    assert not missing, f"no launch in tests/kernels/inspectors/triton_cases.py reaches {missing}"


def tiles_in(module) -> set[tuple[int, ...]]:
    """All tiles in a module's constants."""
    groups = [value for value in vars(module).values() if isinstance(value, tuple)]
    return {tuple(tile) for group in groups for tile in group if isinstance(tile, module.Tile)}


@pytest.mark.parametrize("kernel", ["adapter_forward_kernel", "adapter_input_grad_kernel"])
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_every_tile_of_the_adapter_is_compiled(seen, kernel, architecture):
    compiled = set.union(*(launched(seen, architecture, kernel, float32) for float32 in (True, False)))
    assert tiles_in(adapter)
    assert tiles_in(adapter) <= compiled


def test_limits_of_shared_memory_are_those_of_the_tables():
    assert {f"sm_{number}": limit for number, limit in SHARED_MEMORY.items()} == {
        table.name: table.shared_memory for table in tables.TABLES.values()
    }


@pytest.fixture(scope="module")
def bad():
    return measure(BAD)


@pytest.mark.parametrize(
    ("label", "architecture", "says"),
    [
        ("good", 90, []),
        ("good", 80, []),
        ("too many stages for shared memory", 90, [r"shared memory \d{6} is over the 232448 bytes"]),
        ("too many stages for shared memory", 80, [r"shared memory \d{6} is over the 166912 bytes"]),
        ("too many stages for shared memory", 86, [r"shared memory \d{6} is over the 101376 bytes"]),
        ("mask on the right", 90, ["masked operand: 0 products from registers, [48] from shared memory"]),
        ("mask on the right", 80, []),
        ("no tensor core", 90, ["no tensor core: no HGMMA"]),
        ("no tensor core", 80, ["no tensor core: no HMMA"]),
        ("spills", 90, [r"registers spill: \d+ bytes of stack"]),
        ("serialised", 90, ["serialised: 4 waits for 4 products in loops"]),
        ("scattered", 90, ["0 loads and 0 stores of 16 bytes"]),
    ],
)
def test_a_bad_kernel_breaks_its_limit_and_no_other(bad, label, architecture, says):
    kernels, _ = kernels_and_operations(BAD)
    (one,) = (one for one in bad if (one.launch, one.architecture) == (label, architecture))
    broken = violations(one, kernels[one.kernel])
    assert len(broken) == len(says), broken
    assert all(re.search(pattern, text) for pattern, text in zip(says, broken, strict=True)), broken


def test_a_pipeline_that_copies_nothing_is_a_broken_limit(bad):
    one = next(one for one in bad if (one.launch, one.architecture) == ("good", 90))
    assert one.async_copies > 0
    assert "3 stages, but no asynchronous copy" in violations(one._replace(async_copies=0), Kernel(product=True))[0]


def test_loops_are_those_without_another_inside():
    lines = ["FIRST", "SECOND", "HGMMA", "@P0 BRA 0x10", "THIRD", "BRA `(0x0)", "EXIT", "BRA 0x70"]
    assert loops("\n".join(lines)) == [lines[1:4]]


def test_what_a_loop_has(bad):
    counts = {one.launch: one for one in bad if one.architecture == 90}
    good, right = counts["good"], counts["mask on the right"]
    assert (good.loop_products, good.loop_stores, right.loop_stores) == (4, 0, 4), (
        "the mask on the right is stored again"
    )
    assert good.waits < good.loop_products
    assert good.loop_barriers > 0
    assert counts["too many stages for shared memory"].programs == 0


def test_programs_of_a_multiprocessor():
    assert programs_of(90, 8, 128, 74_752) == 2
    assert programs_of(90, 8, 129, 74_752) == 1, "registers are given in eights"
    assert programs_of(90, 4, 32, 100_000) == 2
    assert programs_of(86, 4, 32, 0) == 12, "48 warps"
    assert programs_of(90, 1, 16, 0) == 32


def test_a_kernel_that_nobody_described_is_a_broken_limit(bad):
    assert "good_kernel: not in KERNELS" in all_violations(bad[:1], {})[0]


def test_a_table_reads_back_and_names_what_moved(bad):
    rows = rows_of(bad)
    assert from_text(to_text(rows, "3.9.0")) == rows
    assert differences(rows, rows) == []
    changed = rows_of([bad[1]._replace(registers=255, shared=7), *bad[2:], bad[0]._replace(launch="another")])
    moved = differences(rows, changed)
    name = f"sm_90 {bad[1].kernel}, {bad[1].launch}"
    assert f"{name}: shared {bad[1].shared} -> 7, registers {bad[1].registers} -> 255" in moved
    assert f"sm_90 {bad[0].kernel}, another: is new" in moved
    assert f"sm_90 {bad[0].kernel}, {bad[0].launch}: is gone" in moved
    assert len(moved) == 3
