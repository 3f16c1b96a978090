"""How the host starts kernels, against a runtime that fails on demand: no GPU and no CUDA are needed."""

from __future__ import annotations

import subprocess

import pytest

from csrc.build.plan import CSRC
from csrc.build.settings import read
from csrc.build.toolchain import Missing, find_cxx

CXX = find_cxx(read())
pytestmark = pytest.mark.skipif(isinstance(CXX, Missing), reason="no C++ compiler")
# As the real one does, it keeps an error until cudaGetLastError takes it away.
RUNTIME = """#pragma once
#include <cstddef>
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
using cudaStream_t = void*;
struct dim3 { unsigned x, y = 1, z = 1; explicit dim3(unsigned x_ = 1) : x(x_) {} };
struct cudaLaunchConfig_t { dim3 gridDim, blockDim; std::size_t dynamicSmemBytes; cudaStream_t stream; };
struct cudaFuncAttributes { int numRegs; };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t last = cudaSuccess;
inline int most_shared = 100000, launches = 0;
inline cudaError_t keep(cudaError_t error) { return error == cudaSuccess ? error : last = error; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetLastError() { cudaError_t taken = last; last = cudaSuccess; return taken; }
inline cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <class K> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, K) { a->numRegs = 77; return cudaSuccess; }
template <class K> cudaError_t cudaFuncSetAttribute(K, int, int bytes) {
    return keep(bytes > most_shared ? cudaErrorInvalidValue : cudaSuccess);
}
template <class... P, class... A> cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*)(P...), A...) {
    if (c->blockDim.x > 1024) return keep(cudaErrorInvalidValue);
    ++launches;
    return cudaSuccess;
}
"""
PROGRAM = """#include "cuda/launch.cuh"
#include <cstdio>
static void kernel(int) {}
static bool fails(int threads, std::size_t shared) {
    try { tss::launch(kernel, 1, threads, shared, tss::Target{}, 1); }
    catch (const std::runtime_error&) { return true; }
    return false;
}
int main() {
    const bool too_much = fails(32, 200000), after_it = fails(32, 0);  // more shared memory than there is
    const bool too_many = fails(2048, 0), after_that = fails(32, 0);
    last = cudaErrorInvalidValue;  // another library's
    const bool after_others = fails(32, 0);
    std::printf("%d%d %d%d %d, ", too_much, after_it, too_many, after_that, after_others);
    std::printf("%d launches, %d registers", launches, tss::registers_of(kernel, 0));
}
"""


def test_a_launch_that_fails_leaves_nothing_for_the_next_one(tmp_path):
    (tmp_path / "cuda_runtime.h").write_text(RUNTIME)
    (tmp_path / "program.cpp").write_text(PROGRAM)
    program = tmp_path / "program"
    command = [CXX.path, "-std=c++17", f"-I{tmp_path}", f"-I{CSRC}", "-o", str(program), str(tmp_path / "program.cpp")]
    subprocess.run(command, check=True)
    said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert said == "10 10 0, 3 launches, 77 registers"
