"""Compiles for sm_90, without a GPU, every kernel that the Triton backend launches at representative shapes.

Run as a script with TRITON_INTERPRET unset; prints one JSON line per distinct kernel and configuration, or with
`--table` a Markdown table. The launches are the host functions' own: only the last step, starting the kernel, is
replaced by a compilation with the types and the divisibility that the launch would have had.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Recorder:
    """Stands in for `JITFunction.run`: notes every distinct launch as what the compiler needs."""

    def __init__(self) -> None:
        self.launches: dict[str, tuple[ASTSource, dict[str, object], str]] = {}
        self.label = ""

    def __call__(self, kernel: JITFunction, *args, grid, warmup, **kwargs) -> None:
        options = {key: kwargs.pop(key) for key in ("num_warps", "num_stages", "enable_fp_fusion") if key in kwargs}
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, attributes = {}, {}, {}
        for position, name in enumerate(kernel.arg_names):
            value = values[name]
            if kernel.params[position].is_constexpr or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                signature[name], divisible = TYPES[value.dtype], value.data_ptr() % 16 == 0
            elif isinstance(value, float):
                signature[name], divisible = "fp32", False
            else:
                signature[name], divisible = "i32" if abs(value) < 2**31 else "i64", value % 16 == 0
            if divisible:
                attributes[(position,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        key = (
            f"{kernel.__name__} {sorted(signature.items())} {sorted(constants.items(), key=str)} {attributes} {options}"
        )
        self.launches.setdefault(key, (source, options, self.label))


def record(recorder: Recorder, shapes: list[tuple[torch.dtype, int, int, int]], lists: list[int]) -> None:
    """Calls the backend's host functions at each (dtype, rows, in, out) and for each number of optimizer tensors."""
    from tss_kernels.adamw import triton as adamw
    from tss_kernels.gated_linear import triton as linear

    for dtype, rows, in_features, out_features in shapes:
        recorder.label = f"{str(dtype).removeprefix('torch.')} {rows} x {in_features} -> {out_features}"
        x, dy = torch.empty(rows, in_features, dtype=dtype), torch.empty(rows, out_features, dtype=dtype)
        weight = torch.empty(out_features, in_features, dtype=dtype)
        scores = torch.empty(out_features, in_features)
        _, packed = linear.forward(x, weight, scores, weight[:, 0].contiguous(), 0.0)
        linear.input_grad(dy, weight, packed)
        linear.scores_grad(dy, x, weight, scores)
    for count in lists:
        for site in ("gradient", "update"):
            recorder.label = f"{count} tensors, {site}"
            tensors = [torch.empty(64, 1024) for _ in range(count)]
            adamw.soft_masked_adamw_(
                tensors, tensors, tensors, tensors, tensors,
                step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, site=site,
            )  # fmt: skip


def inspect(source: ASTSource, options: dict[str, object], label: str) -> dict[str, object]:
    """Compiles one launch and reads registers, stack and instructions from the machine code."""
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()

        def dump(flag: str) -> str:
            command = [str(BINARIES / "cuobjdump"), flag, cubin.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        usage, sass = dump("-res-usage"), dump("-sass")
    ptx = compiled.asm["ptx"]
    fields = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return {
        "kernel": source.fn.__name__,
        "launch": label,
        "warps": compiled.metadata.num_warps,
        "stages": compiled.metadata.num_stages,
        "shared": compiled.metadata.shared,
        "registers": int(fields["REG"]),
        "stack": int(fields["STACK"]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "tensor_core": len(re.findall(r"\b(?:HGMMA|HMMA)\b", sass)),
        "wgmma_from_registers": len(re.findall(r"wgmma\.mma_async\S+ \{[^}]*\}, \{", ptx)),
        "wgmma_from_shared": len(re.findall(r"wgmma\.mma_async\S+ \{[^}]*\}, %rd?\d", ptx)),
        "wide_stores": len(re.findall(r"STG\.E\.128", sass)),
        "narrow_stores": len(re.findall(r"STG\.E(?:\.U?(?:8|16))? ", sass)),
        "async_copies": len(re.findall(r"LDGSTS", sass)),
    }


FAST_SHAPES = [
    (torch.bfloat16, 65536, 1024, 64),
    (torch.bfloat16, 16384, 64, 1024),
    (torch.float16, 1000, 100, 50),
    (torch.float32, 4096, 1024, 64),
    (torch.float32, 4096, 100, 50),
]
TABLE_SHAPES = [
    (dtype, rows, *features)
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for features in ((1024, 64), (64, 1024), (1024, 1024), (100, 50))
    for rows in (8, 4096, 8192, 65536)
]


def main() -> None:
    """Records the launches, compiles each once and prints what was seen."""
    table = "--table" in sys.argv
    recorder = Recorder()
    JITFunction.run = lambda kernel, *args, **kwargs: recorder(kernel, *args, **kwargs)
    record(recorder, TABLE_SHAPES if table else FAST_SHAPES, [1, 48, 600] if table else [48])
    for number, launch in enumerate(recorder.launches.values()):
        seen = inspect(*launch)
        if not table:
            print(json.dumps(seen))
            continue
        if number == 0:
            print("| " + " | ".join(seen) + " |\n|" + " --- |" * len(seen))
        print("| " + " | ".join(str(value) for value in seen.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
