"""Compiles Triton launches for an NVIDIA architecture, without a GPU, and reads the machine code.

The launches are the host functions' own: only the last step, starting the kernel, is replaced by a note of the types
and the divisibility that the launch would have had. Needs TRITON_INTERPRET unset; `resources.py` beside this file runs
it in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tss_kernels.testing.resources import Resources

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Launch(NamedTuple):
    """One kernel as the compiler takes it, and where it came from."""

    architecture: int
    label: str
    even: bool
    source: ASTSource
    options: dict[str, object]


class Recorder:
    """Stands in for `JITFunction.run`: notes every distinct launch."""

    def __init__(self) -> None:
        self.launches: dict[tuple[object, ...], Launch] = {}
        self.architecture, self.label, self.even = 0, "", False

    def __call__(self, kernel: Any, *args: object, grid: object, warmup: object, **kwargs: Any) -> None:
        del grid, warmup
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        values = {parameter.name: parameter.default for parameter in kernel.params}
        values |= dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, attributes = {}, {}, {}
        for position, parameter in enumerate(kernel.params):
            kind, constant, divisible = _specialize(parameter, values[parameter.name])
            signature[parameter.name] = kind
            if kind == "constexpr":
                constants[parameter.name] = constant
            elif divisible:
                attributes[(position,)] = [["tt.divisibility", 16]]
        key = (self.architecture, kernel.__name__, str((signature, constants, attributes, options)))
        source = ASTSource(kernel, signature, constants, attributes)
        self.launches.setdefault(key, Launch(self.architecture, self.label, self.even, source, options))


def _specialize(parameter: Any, value: Any) -> tuple[str, object, bool]:
    """An argument's type, its value where that is compiled in and whether 16 divides it, as a launch would decide."""
    special = not parameter.do_not_specialize
    if parameter.is_constexpr or value is None or (special and type(value) is int and value == 1):
        return "constexpr", value, False
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype], None, special and value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", None, False
    return ("i32" if -(2**31) <= value < 2**31 else "i64"), None, special and value % 16 == 0


def record(architecture: int, operations: dict[str, Any]) -> list[Launch]:
    """Every distinct launch of the operations' cases on one architecture; nothing is compiled yet."""
    recorder = Recorder()
    recorder.architecture = architecture
    # A function, which Python binds to the kernel that is launched.
    with patch.object(JITFunction, "run", lambda kernel, *args, **kwargs: recorder(kernel, *args, **kwargs)):
        for cases in operations.values():
            for case in cases():
                recorder.label, recorder.even = case.label, case.even
                case.call()
    return list(recorder.launches.values())


def _dump(cubin: str, flag: str) -> str:
    return subprocess.run([str(BINARIES / "cuobjdump"), flag, cubin], check=True, capture_output=True, text=True).stdout


def inspect(launch: Launch) -> Resources:
    """Compiles one launch and reads registers, stack and instructions from the machine code."""
    target = GPUTarget("cuda", launch.architecture, 32)
    compiled = triton.compile(launch.source, target=target, options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, sass = _dump(cubin.name, "-res-usage"), _dump(cubin.name, "-sass")
    ptx, fields = compiled.asm["ptx"], dict(re.findall(r"(REG|STACK):(\d+)", usage))

    def count(pattern: str, text: str = sass) -> int:
        return len(re.findall(pattern, text))

    constants = {
        parameter.name: launch.source.constants[(parameter.num,)]
        for parameter in launch.source.fn.params
        if parameter.is_constexpr
    }
    return Resources(
        architecture=launch.architecture,
        kernel=launch.source.fn.__name__,
        launch=launch.label,
        constants=" ".join(f"{name}={value}" for name, value in constants.items() if type(value) is int),
        warps=compiled.metadata.num_warps,
        stages=compiled.metadata.num_stages,
        shared=compiled.metadata.shared,
        registers=int(fields["REG"]),
        stack=int(fields["STACK"]),
        spills=count(r"\b(?:LDL|STL)\b"),
        tensor_core=count(r"\bHGMMA\b" if launch.architecture == 90 else r"\bHMMA\b"),
        a_registers=count(r"wgmma\.mma_async\S+ \{[^}]*\}, \{", ptx),
        a_shared=count(r"wgmma\.mma_async\S+ \{[^}]*\}, %rd?\d", ptx),
        async_copies=count(r"\b(?:LDGSTS|UTMALDG)\b"),
        wide_loads=count(r"\b(?:LDG|LDGSTS)\.E\S*\.128\b"),
        wide_stores=count(r"\bSTG\.E\S*\.128\b"),
        narrow_stores=count(r"\bSTG\.E(?:\.[SU]?(?:8|16))? "),
        even=launch.even,
        fast=_multiplies_fast(launch.source.signature, constants),
    )


def _multiplies_fast(signature: dict[str, str], constants: dict[str, object]) -> bool:
    """Whether a product in this launch belongs on tensor cores: 16-bit tensors, or float32 ones rounded to tf32."""
    return constants.get("PRECISION") == "tf32" or any(kind in ("*fp16", "*bf16") for kind in signature.values())


_LAUNCHES: list[Launch] = []


def _inspect_number(number: int) -> Resources:
    return inspect(_LAUNCHES[number])


def inspect_all(launches: Iterable[Launch]) -> Iterator[Resources]:
    """`inspect` on every launch in order, as many at a time as there are processors."""
    _LAUNCHES[:] = launches
    # Forked, because launches hold functions that cannot be sent to another process.
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        yield from pool.imap(_inspect_number, range(len(_LAUNCHES)))
