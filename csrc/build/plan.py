"""Sources and compiler flags of all extension modules and of their test builds, in one file."""

from __future__ import annotations

import platform
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from csrc.build.settings import Settings
from csrc.build.toolchain import Missing, Tool, cuda_home

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
X86 = ("x86_64", "AMD64")
# csrc/cpu/kernels.cpp is compiled to one object for each; which one runs is decided when the module is loaded.
INSTRUCTION_SETS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512", "-mf16c"),
}
# No contraction: results are rounded wherever the reference rounds. -fno-trapping-math lets loops with a condition in
# them be vectorized; their results stay the same, and nobody enables traps.
COMMON = (
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-Wall", "-Wextra",
)  # fmt: skip
FAST = ("-O3",)
CHECKED = (
    "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
)  # fmt: skip
# The deprecation warnings that are switched off concern nvcc's own next release.
NVCC = (
    "-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-diag-suppress", "177",
    "-Wno-deprecated-gpu-targets",
)  # fmt: skip
# Files whose kernels round wherever the reference rounds: no multiplication is fused with an addition.
ROUNDED, ROUNDED_FILES = ("-fmad=false",), ("adamw", "importance")
# The kernels move elements 16 bytes at a time through pointers of another type, which CUDA allows.
EMULATED = ("-fno-strict-aliasing", "-Wno-unknown-pragmas")
# In files that move single elements, every memory access is a call, which csrc/emulator counts; no sanitizer is linked.
TRACED, TRACED_FILES = ("-fsanitize=thread",), ("adamw", "gates", "importance")
GIB_OF_NVCC, GIB_OF_CXX = 2.0, 1.0


class Source(NamedTuple):
    """One compilation: the file, a name for its object, the compiler ("cxx" or "nvcc") and flags of its own."""

    path: Path
    object_name: str
    compiler: str
    flags: tuple[str, ...] = ()


class Module(NamedTuple):
    """One extension module (its name in tss_kernels, its sources and link flags), or a program."""

    name: str
    sources: tuple[Source, ...]
    link: tuple[str, ...] = ()
    gib_each: float = GIB_OF_CXX
    program: bool = False


def _includes() -> tuple[str, ...]:
    import pybind11

    folders = (str(CSRC), pybind11.get_include(), sysconfig.get_paths()["include"])
    return (f"-I{folders[0]}", *(part for folder in folders[1:] for part in ("-isystem", folder)))


def native(checked: bool = False) -> Module:
    """Return the module for CPUs; `checked` builds it with address and undefined-behaviour sanitizers."""
    flags = (*COMMON, *(CHECKED if checked else FAST), *_includes())
    sets = INSTRUCTION_SETS if platform.machine() in X86 else {"portable": ()}
    sources = []
    for path in sorted((CSRC / "cpu").glob("*.cpp")):
        if path.stem == "kernels":
            sources += [
                Source(path, f"kernels_{name}", "cxx", (*flags, f"-DTSS_ISA={name}", *own))
                for name, own in sets.items()
            ]
        else:
            sources.append(Source(path, path.stem, "cxx", flags))
    return Module("_native", tuple(sources), ("-pthread", *(CHECKED[-2:-1] if checked else ())))


def native_counted() -> Module:
    """Return the program for valgrind: the module's own kernels, in the instruction sets that valgrind supports."""
    counted = ("kernels_portable", "kernels_avx2", "threads")
    kernels = tuple(source for source in native().sources if source.object_name in counted)
    caller = Source(CSRC / "counting" / "native.cpp", "counting", "cxx", (*COMMON, *FAST, f"-I{CSRC}"))
    # Symbols are bound at start-up: otherwise the count of a first call includes the lookup of its function.
    return Module("native_counted", (*kernels, caller), ("-pthread", "-Wl,-z,now"), program=True)


def gencode(architectures: tuple[str, ...]) -> tuple[str, ...]:
    """Return nvcc's flags for architectures such as "80", "90a" and "90+PTX"."""
    flags: list[str] = []
    for name in architectures:
        number, ptx = name.removesuffix("+PTX"), name.endswith("+PTX")
        flags += ["-gencode", f"arch=compute_{number},code={'compute' if ptx else 'sm'}_{number}"]
    return tuple(flags)


def cuda_sources() -> list[Path]:
    """Return the .cu files, which hold the kernels."""
    return sorted((CSRC / "cuda").glob("*.cu"))


def nvcc_flags(path: Path, architectures: tuple[str, ...]) -> tuple[str, ...]:
    """Return the nvcc flags of a file of kernels."""
    return (*NVCC, *(ROUNDED if path.stem in ROUNDED_FILES else ()), f"-I{CSRC}", *gencode(architectures))


def cuda(settings: Settings, nvcc: Tool) -> Module | Missing:
    """Return the module for GPUs, linked with the static CUDA runtime, so that it imports without a driver."""
    home = cuda_home(nvcc)
    libraries = [] if home is None else [home / "lib64", home / "lib", home / "targets" / "x86_64-linux" / "lib"]
    library = next((folder for folder in libraries if (folder / "libcudart_static.a").exists()), None)
    if home is None or library is None:
        return Missing(
            f"{nvcc.path} has no {'include/cuda_runtime.h' if home is None else 'libcudart_static.a'} beside it",
            "install the whole CUDA toolkit (the development files of the runtime are missing)",
        )
    kernels = tuple(
        Source(path, f"{path.stem}_cu", "nvcc", nvcc_flags(path, settings.architectures)) for path in cuda_sources()
    )
    host = (*COMMON, *FAST, *_includes(), "-isystem", str(home / "include"))
    bindings = tuple(Source(path, path.stem, "cxx", host) for path in sorted((CSRC / "cuda").glob("*.cpp")))
    link = (f"-L{library}", "-lcudart_static", "-ldl", "-lrt", "-pthread")
    return Module("_cuda", kernels + bindings, link, GIB_OF_NVCC)


def emulated(checked: bool = False) -> Module:
    """Return the GPU module's own sources compiled for the CPU against csrc/emulator: for tests, never installed."""
    # Not -O3: the unrolled loops over fragments compile badly at -O3 with sanitizers.
    flags = (*COMMON, *(CHECKED if checked else ("-O2",)), "-DTSS_EMULATED", *EMULATED, *_includes())
    traced = not checked and sys.platform == "linux"  # only one sanitizer at a time
    flags += ("-DTSS_TRACED",) if traced else ()
    sources = [
        Source(
            path,
            f"{path.stem}_cu",
            "cxx",
            (*flags, *(TRACED if traced and path.stem in TRACED_FILES else ()), "-x", "c++"),
        )
        for path in cuda_sources()
    ]
    for folder in ("cuda", "emulator"):
        sources += [
            Source(path, f"{folder}_{path.stem}", "cxx", flags) for path in sorted((CSRC / folder).glob("*.cpp"))
        ]
    return Module("_cuda_emulated", tuple(sources), ("-pthread", *(CHECKED[-2:-1] if checked else ())))
