"""Shared by the Triton kernels: the launch, the precision of float32 products and exact bfloat16 conversions."""

# Triton derives the types of a kernel's arguments from the call.
from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


def launch(kernel: Any, programs: int, first: torch.Tensor, *arguments: object, **constants: object) -> None:
    """Launch `programs` programs of a kernel on the GPU of its first argument, even if it is not the current one."""
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        # Fused multiply-adds are requested explicitly: the default, and with it results, depends on Triton's version.
        kernel[(programs,)](first, *arguments, **constants, enable_fp_fusion=True)


def dot_precision() -> str:
    """Return how `tl.dot` multiplies float32: "tf32" if PyTorch's own matrix products may use it, else "ieee"."""
    # `allow_tf32` raises once a program has used the newer setting; the newer one reflects both.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@triton.jit
def dot_operand(value):
    """Return the value; in the interpreter, whose bfloat16 product is wrong, convert bfloat16 to float32."""
    if INTERPRETED and value.dtype == tl.bfloat16:
        return (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return value


@triton.jit
def to_float32(value):
    """Convert to float32, exactly; the interpreter's own conversion gets bfloat16 subnormals wrong."""
    return dot_operand(value).to(tl.float32)


@triton.jit
def from_float32(value, dtype: tl.constexpr):
    """Round a float32 value to nearest even; the interpreter's own conversion to bfloat16 truncates."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        bits = tl.where(value == value, rounded, bits | 0x400000)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)
