"""Hopper's instructions exist in code for sm_90a alone: whatever else is compiled, no kernel may do nothing."""

from __future__ import annotations

import pytest

from csrc.build.settings import read
from csrc.build.toolchain import Missing, find_nvcc
from tests.kernels.inspectors.cuda_machine_code import compiled, does_nothing
from tests.kernels.inspectors.cuda_resources import cuobjdump

# One kernel for all architectures and one of Hopper's warpgroups.
SOURCE = """#include "cuda/gated_linear.cuh"
using namespace tss;
template __global__ void tss::gated_product_kernel<bfloat16, ProductTile<64, 32, 2, 2, 3>, false, false, true>(
    const __grid_constant__ ProductOperands<bfloat16>);
template __global__ void tss::gated_product_kernel<bfloat16, ProductTile<64, 128, 4, 1, 3, true>, false, false, true>(
    const __grid_constant__ ProductOperands<bfloat16>);
"""
SUMS = 64  # of a lane of the second, which the launch asks for as registers


@pytest.fixture(scope="module")
def nvcc():
    found = find_nvcc(read())
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    if cuobjdump() is None:
        pytest.skip("cuobjdump was not found: it comes with the CUDA toolkit and with Triton")
    return found.path


# The PTX of which architecture, made code for which: 80+PTX or 90+PTX on Hopper is what its driver compiles itself.
@pytest.mark.parametrize(("virtual", "real"), [("80", "80"), ("80", "90"), ("90", "90"), ("90a", "90a")])
def test_a_kernel_of_warpgroups_is_there_or_stops_the_launch(nvcc, virtual, real, tmp_path):
    kernels = compiled(nvcc, SOURCE, virtual, real, tmp_path)
    assert len(kernels) == 2
    assert not [kernel.name for kernel in kernels if does_nothing(kernel)]
    by = {"true>, false" in kernel.name: kernel for kernel in kernels}
    assert by[False].has(r"HMMA\.")
    if real == "90a":
        assert by[True].has(r"HGMMA\.")
        assert not by[True].has(r"BPT\.TRAP")
        assert by[True].registers >= SUMS
    else:
        assert by[True].has(r"BPT\.TRAP")
        assert by[True].registers < SUMS


def test_a_kernel_that_does_nothing_is_named(nvcc, tmp_path):
    source = "__global__ void empty(int* out) { if (!out) return; } __global__ void full(int* out) { *out = 1; }"
    kernels = compiled(nvcc, source, "90", "90", tmp_path)
    assert [kernel.name for kernel in kernels if does_nothing(kernel)] == ["empty(int*)"]
