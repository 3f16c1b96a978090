#!/usr/bin/env bash
# Runs the tests of the native kernels, and of the CUDA kernels compiled for the CPU, with address and
# undefined-behaviour sanitizers, which check every access of every kernel, also to PyTorch's memory.
# Usage: scripts/sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
TSS_CHECKED_NATIVE=$("$python" -m csrc.build native-checked)
TSS_KERNELS_EMULATED_CUDA=$("$python" -m csrc.build emulated-checked)
export TSS_CHECKED_NATIVE TSS_KERNELS_EMULATED_CUDA
# Tests that start compilers are skipped, because the sanitizer would be loaded into the compilers too.
# Python itself leaks on purpose, so leaks are not detected; the sanitizer must be loaded before Python.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
# So must the C++ library, or the first exception terminates the process.
cxx=${CXX:-g++}
LD_PRELOAD="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so.6)" "$python" -m pytest -p no:cacheprovider \
  -n "${WORKERS:-auto}" --dist worksteal tests/kernels \
  -k "(native or cuda) and not compile and not dispatch and not check_op and not guard_pages \
    and not architectures and not loops and not planted" "${@:2}"
