"""Compiles Triton launches for an NVIDIA architecture, without a GPU, and reads the machine code.

The launches are the host functions' own: only the last step, starting the kernel, is replaced by a note of the types
and the divisibility that the launch would have had. Needs TRITON_INTERPRET unset; `resources.py` beside this file runs
it in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tests.kernels.inspectors.machine_code import code_of, disassemble, loops, registers_and_stack
from tests.kernels.inspectors.resources import UNITS, Kernel, Resources, programs_of
from tss_kernels.backends import tables

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")
TYPES = {
    torch.float64: "*fp64",
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
    aligned: bool
    source: ASTSource
    options: dict[str, object]


class Recorder:
    """Stands in for `JITFunction.run`: notes every distinct launch."""

    def __init__(self) -> None:
        self.launches: dict[tuple[object, ...], Launch] = {}
        self.architecture, self.label, self.aligned = 0, "", False

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
        self.launches.setdefault(key, Launch(self.architecture, self.label, self.aligned, source, options))


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


def record(
    architecture: int, kernels: dict[str, Kernel], operations: dict[str, Any], everything: bool = False
) -> list[Launch]:
    """Every distinct launch of the operations' cases on one architecture that is compiled for it; nothing is yet.

    everything: also what is usually compiled for sm_90 alone.
    """
    everything = everything or architecture == 90
    recorder = Recorder()
    recorder.architecture = architecture
    with (
        # A function, which Python binds to the kernel that is launched.
        patch.object(JITFunction, "run", lambda kernel, *args, **kwargs: recorder(kernel, *args, **kwargs)),
        # Tensors that are on no CUDA device take the table of this name.
        patch.object(tables.sm_90, "TABLE", tables.table_of(*divmod(architecture, 10))),
    ):
        for cases in operations.values():
            for case in cases():
                if not everything and not case.everywhere:
                    continue
                recorder.label, recorder.aligned = case.label, case.aligned
                case.call()
    return [
        launch
        for launch in recorder.launches.values()
        if everything or (launch.source.fn.__name__ in kernels and kernels[launch.source.fn.__name__].product)
    ]


class Compiled(NamedTuple):
    """A launch after the compiler: what its files say, and its machine code."""

    warps: int
    stages: int
    shared: int
    registers: int
    stack: int
    a_registers: int
    a_shared: int
    code: bytes


def compile_launch(launch: Launch) -> Compiled:
    """Compiles one launch."""
    target = GPUTarget("cuda", launch.architecture, 32)
    compiled = triton.compile(launch.source, target=target, options=launch.options)
    registers, stack = registers_and_stack(compiled.asm["cubin"])
    ptx, chosen = compiled.asm["ptx"], compiled.metadata
    return Compiled(
        chosen.num_warps,
        chosen.num_stages,
        chosen.shared,
        registers,
        stack,
        # The first operand is a list of registers, or the address of a description of shared memory.
        a_registers=len(re.findall(r"wgmma\.mma_async\S+ \{[^}]*\}, \{", ptx)),
        a_shared=len(re.findall(r"wgmma\.mma_async\S+ \{[^}]*\}, %rd?\d", ptx)),
        code=code_of(compiled.asm["cubin"]),
    )


def _resources(launch: Launch, compiled: Compiled, instructions: str) -> Resources:
    def count(pattern: str) -> int:
        return len(re.findall(pattern, instructions))

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
        **{name: value for name, value in compiled._asdict().items() if name != "code"},
        spills=count(r"\b(?:LDL|STL)\b"),
        tensor_core=count(rf"\b{UNITS[launch.architecture]}\b"),
        async_copies=count(r"\b(?:LDGSTS|UTMALDG)\b"),
        wide_loads=count(r"\b(?:LDG|LDGSTS)\.E\S*\.128\b"),
        wide_stores=count(r"\bSTG\.E\S*\.128\b"),
        narrow_stores=count(r"\bSTG\.E(?:\.[SU]?(?:8|16))? "),
        **_of_loops(instructions, UNITS[launch.architecture]),
        programs=programs_of(launch.architecture, compiled.warps, compiled.registers, compiled.shared),
        aligned=launch.aligned,
        fast=_multiplies_fast(launch.source.signature, constants),
    )


def _of_loops(instructions: str, unit: str) -> dict[str, Any]:
    """What loops with tensor-core instructions have of them, of waits for them, stores to shared memory, barriers."""
    patterns = {
        "loop_products": rf"\b{unit}\b",
        "waits": r"\bWARPGROUP\.DEPBAR\b",
        "loop_stores": r"\b(?:STS|STSM)\b",
        "loop_barriers": r"\bBAR\.SYNC\b",
    }
    found = [
        {name: sum(bool(re.search(pattern, line)) for line in loop) for name, pattern in patterns.items()}
        for loop in loops(instructions)
    ]
    found = [counts for counts in found if counts["loop_products"]]
    # A tile takes several products, which run one behind the other unless each is waited for.
    serialised = any(counts["waits"] >= counts["loop_products"] > 1 for counts in found)
    return {name: sum(counts[name] for counts in found) for name in patterns} | {"serialised": serialised}


def _multiplies_fast(signature: dict[str, str], constants: dict[str, object]) -> bool:
    """Whether a product in this launch belongs on tensor cores: 16-bit tensors, or float32 ones rounded to tf32."""
    return constants.get("PRECISION") == "tf32" or any(kind in ("*fp16", "*bf16") for kind in signature.values())


_LAUNCHES: list[Launch] = []


def _compile_number(number: int) -> Compiled:
    return compile_launch(_LAUNCHES[number])


def inspect(launches: Iterable[Launch]) -> list[Resources]:
    """Compiles launches, as many at a time as there are processors, and reads what each takes."""
    _LAUNCHES[:] = launches
    # Forked, because launches hold functions that cannot be sent to another process.
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        compiled = pool.map(_compile_number, range(len(_LAUNCHES)), chunksize=1)
    texts = {}
    for architecture in {launch.architecture for launch in _LAUNCHES}:
        numbers = [number for number, launch in enumerate(_LAUNCHES) if launch.architecture == architecture]
        listed = disassemble(architecture, [compiled[number].code for number in numbers])
        texts |= dict(zip(numbers, listed, strict=True))
    return [_resources(launch, compiled[number], texts[number]) for number, launch in enumerate(_LAUNCHES)]
