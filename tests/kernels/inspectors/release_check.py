"""What is compiled once a release, because it takes long: odd shapes, and architectures that no table is about.

    python -m tests.kernels.inspectors.release_check                          # everything; over an hour on two cores
    python -m tests.kernels.inspectors.release_check --only triton cuda       # one of them, or both
    python -m tests.kernels.inspectors.release_check --architectures 89 120   # some of the architectures

Triton's launches, those of the tables and those of `odd_launches.py`, and all files of csrc/cuda are compiled without a
GPU. Ends with 1 where something does not compile, runs out of registers or does not fit shared memory, unless it is
known to (KNOWN below, each with its reason), or where what is known is no longer so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.kernels.inspectors.resources import ROOT, SHARED_MEMORY, kernels_and_operations

MODULE = "tests.kernels.inspectors.release_check"
ODD = Path(__file__).with_name("odd_launches.py")
# Bytes of shared memory that one block may use. sm_86 has the tiles, the limit and the instructions of sm_89.
LIMITS = MappingProxyType(SHARED_MEMORY | {89: 101_376, 100: 232_448, 120: 101_376})
CHECKED = (80, 89, 90, 100, 120)
WITHOUT_TABLE = (89, 100, 120)  # csrc/cuda is compiled for these, and the launches of the tables
# What breaks a limit and is shipped, by its beginning, and why: all spill 8 to 48 bytes, one of them 112.
_HELD = "held to 128 registers for two programs on a multiprocessor of Hopper, which takes them without a spill"
_CHOSEN = "tiles were chosen by compiling for sm_80, sm_86 and sm_90, where this does not spill"
_JUST_IN_TIME = "no code for sm_120 is shipped; without a spill scores would be compared one by one on Hopper too"
_HELD_LAUNCHES = (
    "sm_120 adapter_input_grad_kernel, bfloat16 relu, 512 x 1024, 128 hidden",
    "sm_120 adapter_input_grad_kernel, bfloat16 gelu, 512 x 1024, 128 hidden",
    "sm_120 adapter_input_grad_kernel, bfloat16 silu, 512 x 1024, 128 hidden",
    "sm_120 adapter_input_grad_kernel, bfloat16 tanh, 512 x 1024, 128 hidden",
    "sm_120 adapter_input_grad_kernel, bfloat16 65536 x 1024, 64 hidden, gelu",
    "sm_120 adapter_input_grad_kernel, bfloat16 65536 x 1024, 128 hidden, gelu",
    "sm_120 adapter_input_grad_kernel, bfloat16 65536 x 1024, 64 hidden, relu",
    "sm_120 adapter_input_grad_kernel, bfloat16 65536 x 1024, 64 hidden, silu",
    "sm_120 adapter_input_grad_kernel, bfloat16 65536 x 1024, 64 hidden, tanh",
)
_CHOSEN_LAUNCHES = (
    "sm_120 forward_kernel, bfloat16 5 x 64 -> 1",
    "sm_120 forward_kernel, bfloat16, columns",
    "sm_120 partial_kernel, bfloat16, columns",
    "sm_120 partial_kernel, float32 5 x 1 -> 64",
    "sm_120 partial_kernel, float32, columns",
    "sm_120 adapter_forward_kernel, bfloat16 gelu, x in float32, 128 hidden",
    "sm_120 adapter_forward_kernel, float32 gelu, 1 x 1, 1 hidden",
    "sm_120 adapter_forward_kernel, float32 gelu, one element",
    "sm_120 importance_kernel, float32 1 x 9",
    "sm_120 importance_kernel, float32 3 x 8",
    "sm_120 input_grad_kernel, bfloat16 65536 x 64 -> 1024",
    "sm_120 partial_kernel, tf32 512 x 1024 -> 64",
    "sm_120 adapter_forward_kernel, bfloat16 65536 x 1024, 128 hidden, gelu",
)
_ODD = "sizes of one, and inputs whose columns lie together: rare, and a few bytes in a launch of microseconds"
_ODD_LAUNCHES = (
    "sm_89 adapter_forward_kernel, float32 gelu, 1 x 1, 1 hidden",
    "sm_80 partial_kernel, float32 1 x 1024 -> 64",
    "sm_80 adapter_forward_kernel, float32 gelu, 1 x 1, 1 hidden",
    "sm_90 forward_kernel, float32, columns",
    "sm_90 adapter_forward_kernel, float32 gelu, 1 x 1, 1 hidden",
    "sm_100 input_grad_kernel, float32 1 x 64 -> 1024",
    "sm_100 forward_kernel, float32, columns",
    "sm_100 adapter_forward_kernel, bfloat16 gelu, 1 x 1, 1 hidden",
    "sm_100 adapter_forward_kernel, float32 gelu, 1 x 1, 1 hidden",
    "sm_100 adapter_forward_kernel, float32 gelu, one element",
)
_HOPPERS = "sizes were chosen by compiling for sm_80 and sm_90, where this does not spill"
_HOPPERS_LAUNCHES = (
    "sm_89 statistics_kernel, 64 x 1024, per tensor",
    "sm_89 statistics_kernel, 1024 x 4096, per tensor",
    "sm_100 input_grad_kernel, float32 relu, 512 x 1024, 128 hidden",
    "sm_100 adapter_input_grad_kernel, bfloat16 65536 x 1024, 64 hidden, gelu",
    "sm_100 adapter_input_grad_kernel, bfloat16 65536 x 1024, 64 hidden, silu",
)
_SCORES = ", ProductTile<64, 32, 2, 2, 3, false>, false, true, true>"
KNOWN = {
    **dict.fromkeys(_HELD_LAUNCHES, _HELD),
    **dict.fromkeys(_CHOSEN_LAUNCHES, _CHOSEN),
    **dict.fromkeys(_ODD_LAUNCHES, _ODD),
    **dict.fromkeys(_HOPPERS_LAUNCHES, _HOPPERS),
    **{f"sm_120 gated_product_kernel<{dtype}{_SCORES}": _JUST_IN_TIME for dtype in ("bfloat16", "float16")},
}

_launches: list[Any] = []


def _problem(number: int) -> str | None:
    """What is wrong with one launch, in words."""
    from tests.kernels.inspectors import triton_compile

    launch = _launches[number]
    name = f"sm_{launch.architecture} {launch.source.fn.__name__}, {launch.label}"
    try:
        taken = triton_compile.compile_launch(launch)
    except Exception as error:  # whatever the compiler raises is what is looked for
        return f"{name}: does not compile: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    limit = LIMITS[launch.architecture]
    if taken.shared > limit:
        return f"{name}: shared memory {taken.shared} is over the {limit} bytes of a block"
    return f"{name}: registers spill: {taken.stack} bytes of stack" if taken.stack else None


def problems_of_triton(
    architectures: Iterable[int], files: Sequence[Path | None] = (ODD, None)
) -> tuple[int, list[str]]:
    """How many launches were compiled and what is wrong with any; the tables' own (None) only where no table is."""
    from tests.kernels.inspectors import triton_compile

    found: dict[str, Any] = {}
    for architecture in architectures:
        for file in files:
            if file is None and architecture not in WITHOUT_TABLE:
                continue
            kernels, operations = kernels_and_operations(file)
            for launch in triton_compile.record(architecture, kernels, operations, everything=True):
                source = launch.source
                key = (launch.architecture, source.fn.__name__, source.signature, source.constants, source.attrs)
                found.setdefault(str((key, launch.options)), launch)
    _launches[:] = found.values()
    # Forked, because launches hold functions that cannot be sent to another process.
    problems = []
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for text in pool.imap(_problem, range(len(_launches))):
            if text is not None:
                print(text, file=sys.stderr, flush=True)  # at once: the rest takes long
                problems.append(text)
    return len(_launches), problems


def problems_of_cuda(architectures: Iterable[int], folder: Path) -> tuple[int, list[str]]:
    """How many kernels of csrc/cuda were compiled and what is wrong with any."""
    from csrc.build.ninja_file import BuildFailed
    from csrc.build.variants import built
    from tests.kernels.inspectors import cuda_resources

    os.environ["TSS_KERNELS_ARCHITECTURES"] = " ".join(map(str, architectures))
    try:
        kernels = cuda_resources.read(built("cuda", folder))
    except BuildFailed as error:
        return 0, [f"csrc/cuda: does not compile: {error}"]
    return len(kernels), [text for kernel in kernels for text in cuda_resources.violations(kernel)]


def judge(problems: Iterable[str], known: Iterable[str]) -> list[str]:
    """Problems that are not known, and what is known but no longer there."""
    problems, known = list(problems), list(known)
    new = [text for text in problems if not any(text.startswith(start) for start in known)]
    gone = [start for start in known if not any(text.startswith(start) for text in problems)]
    return new + [f"{start}: is known and no longer so: take it out of KNOWN" for start in gone]


def main() -> int:
    """The command line; see this file's beginning."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=("triton", "cuda"), default=("triton", "cuda"))
    parser.add_argument("--architectures", type=int, nargs="+", choices=sorted(LIMITS), default=CHECKED)
    options = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        return subprocess.call([sys.executable, "-m", MODULE, *sys.argv[1:]])
    problems: list[str] = []
    if "triton" in options.only:
        count, found = problems_of_triton(options.architectures)
        print(f"{count} launches of Triton, {len(found)} with a problem", flush=True)
        problems += found
    if "cuda" in options.only:
        architectures = [number for number in options.architectures if number in WITHOUT_TABLE]
        count, found = problems_of_cuda(architectures, ROOT / "build" / "release")
        print(f"{count} kernels of CUDA C++, {len(found)} with a problem", flush=True)
        problems += found
    asked = tuple(f"sm_{number} " for number in options.architectures)
    # Kernels of CUDA C++ are named with their parameters, Triton's with their launch.
    known = [
        start for start in KNOWN if start.startswith(asked) and ("cuda" if "<" in start else "triton") in options.only
    ]
    wrong = judge(problems, known)
    print(*wrong, f"{len(wrong)} to mend, {len(problems)} in all", sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
