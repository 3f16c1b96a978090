"""Every CUDA C++ kernel, as compiled: limits on what it takes of a GPU, and the table of what it took before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.inspectors import cuda_resources
from tests.kernels.inspectors.cuda_resources import Kernel, built_module, cuobjdump, read, rows_of, violations
from tests.kernels.inspectors.resource_table import differences, from_text
from tss_kernels.backends.registry import build_record

TABLES = Path(__file__).with_name("resources")
SMALLEST = 101_376  # bytes of shared memory of a block on the smaller chips that run code for sm_80


@pytest.fixture(scope="module")
def kernels():
    module = built_module()
    if module is None:
        pytest.skip("tss_kernels._cuda was not built: no nvcc")
    if cuobjdump() is None:
        pytest.skip("cuobjdump was not found: it comes with the CUDA toolkit and with Triton")
    return read(module)


def test_limits(kernels):
    broken = [text for kernel in kernels for text in violations(kernel)]
    assert not broken, "\n".join(broken)


def test_nothing_moved_since_the_table_was_written(kernels):
    path = TABLES / f"nvcc-{cuda_resources.version()}.md"
    if not path.exists():
        pytest.skip(f"no table for nvcc {cuda_resources.version()}: `make resources` adds it; limits are tested")
    old = from_text(path.read_text())
    built = {kernel.architecture for kernel in kernels}
    if missing := {key[0] for key in old} - built:
        pytest.skip(f"not compiled for {', '.join(sorted(missing))}: {build_record()['_cuda']['how']}")
    moved = differences(old, rows_of(kernels))
    assert not moved, "\n".join([f"moved since {path.name} was written; `make resources` rewrites it", *moved])


def test_both_architectures_have_tensor_cores_and_hopper_its_own(kernels):
    by = {name: [kernel for kernel in kernels if kernel.architecture == name] for name in ("sm_80", "sm_90a")}
    if not all(by.values()):
        pytest.skip("compiled for other architectures")
    assert len(by["sm_80"]) == len(by["sm_90a"])
    assert sum(kernel.counts["hgmma"] > 0 for kernel in by["sm_90a"]) == 8  # two tiles, types and directions
    assert not any(kernel.counts["hgmma"] for kernel in by["sm_80"])


def test_shared_memory_fits_every_chip(cuda_kernels, device):
    from tss_kernels.backends.cuda import kernels as module_of

    asked = cuda_resources.shared_bytes(module_of(device))
    assert {"gated_product wide", "scores_grad down"} <= set(asked)
    assert max(asked.values()) <= SMALLEST, asked


def test_adamw_that_moves_single_elements_is_named():
    counts = {"hmma": 0, "hgmma": 0, "async_copies": 0, "wide_loads": 5, "wide_stores": 0, "spills": 0}
    (found,) = violations(Kernel("sm_80", "adamw_kernel", "48, true", 40, 0, counts))
    assert "5 loads and 0 stores of 16 bytes" in found
    assert violations(Kernel("sm_80", "adamw_kernel", "48, false", 40, 0, counts)) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"stack": 8}, "registers spill: 8 bytes"),
        ({"counts": {"spills": 2}}, "2 local loads and stores"),
        ({"counts": {"hmma": 0}}, "no HMMA"),
        ({"counts": {"async_copies": 0}}, "nothing is copied 16 bytes at a time"),
        ({"counts": {"wide_stores": 0}}, "nothing is stored 16 bytes at a time"),
        ({"parameters": "float16, ProductTile<128, 128, 8, 1, 3, true>, false, false, true"}, "no HGMMA"),
    ],
)
def test_a_kernel_that_breaks_a_limit_is_named(changed, says):
    counts = {"hmma": 64, "hgmma": 0, "async_copies": 42, "wide_loads": 0, "wide_stores": 1, "spills": 0}
    parameters = "float16, ProductTile<128, 128, 2, 4, 3, false>, false, false, true"
    good = Kernel("sm_90a", "gated_product_kernel", parameters, 128, 0, counts)
    assert violations(good) == []
    bad = good._replace(**changed | {"counts": counts | changed.get("counts", {})})
    (found,) = violations(bad)
    assert says in found
    assert bad.parameters in found
