"""Which backend each operation prefers, by kind of device, and on what basis: the first that can run is taken."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Preference(NamedTuple):
    """A backend and why it stands where it stands; basis: "measured ..." or "predicted ..."."""

    backend: str
    basis: str


# A launch from Python takes the compiled extension about a microsecond and Triton's launcher several times that. Where
# the kernel itself takes less than either, that decides.
_LAUNCH = Preference(
    "cuda", "predicted: bound by memory and, when small, by the launch, which is shorter than Triton's"
)
_ONE_LAUNCH = Preference("cuda", "predicted: addresses travel in the launch, Triton needs a table copied to the device")
_TRITON = Preference("triton", "predicted: pipelined tiles by Hopper's own matrix instructions at every shape")
_TRITON_ELSE = Preference("triton", "fused kernel for CUDA tensors where the extension is not built")
_CUDA_ELSE = Preference("cuda", "fused kernel for CUDA tensors where Triton is not installed")

CUDA: dict[str, tuple[Preference, ...]] = {
    "gated_linear": (_TRITON, _CUDA_ELSE),
    "gated_adapter": (_TRITON, _CUDA_ELSE),
    "packed_linear": (_TRITON, _CUDA_ELSE),
    "pack_gates": (_LAUNCH, _TRITON_ELSE),
    "unpack_gates": (_LAUNCH, _TRITON_ELSE),
    "normalize_importance": (_LAUNCH, _TRITON_ELSE),
    "accumulate_importance_": (_LAUNCH, _TRITON_ELSE),
    "update_importance_": (_LAUNCH, _TRITON_ELSE),
    "soft_masked_adamw_": (_ONE_LAUNCH, _TRITON_ELSE),
}


def _native(times: str) -> tuple[Preference, ...]:
    """At every dtype and shape measured, from 4 rows of 8 to 2,048 of 1,024; AVX2, torch 2.13."""
    return (Preference("native", f"measured with AVX2 on one core: {times} as fast as the reference"),)


CPU: dict[str, tuple[Preference, ...]] = {
    "gated_linear": _native("1.05 (many rows) to 2.9 times (few)"),
    "gated_adapter": _native("1.05 to 1.3 times"),
    "packed_linear": _native("2.7 to 5.9 times"),
    "pack_gates": _native("2 to 8 times"),
    "unpack_gates": _native("3.5 to 15 times"),
    "normalize_importance": _native("1.8 to 6 times"),
    "accumulate_importance_": _native("1.2 to 2.2 times"),
    "update_importance_": _native("1.8 to 8 times"),
    "soft_masked_adamw_": _native("2.3 to 14 times"),
}


def preferences(op: str, device: torch.device, dtype: torch.dtype) -> tuple[Preference, ...]:
    """The backends to try for an operation before the reference, in order."""
    del dtype
    if device.type == "cuda":
        return CUDA[op]
    return CPU.get(op, ()) if device.type == "cpu" else ()
