"""What an operation would run and what it must move: the choice of backend with its reasons, bytes, operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tss_kernels import dispatch

# Measured ceilings of a device by the name that torch gives it: bytes per second, then operations per second by dtype.
CEILINGS: dict[str, tuple[float, dict[torch.dtype, float]]] = {"NVIDIA H200": (4.3e12, {torch.bfloat16: 790e12})}


@dataclass(frozen=True)
class Explanation:
    """What would run, why, and the least it could cost.

    Attributes:
        op, backend, reason: the operation, its backend, and why that one.
        bytes: that must move to and from memory if every operand is touched once.
        operations: multiplications and additions.
        roofline_seconds: the least time for these on this device, or None where its ceilings are unknown.
        rejected: backend -> why it was not chosen.
    """

    op: str
    backend: str
    reason: str
    bytes: int
    operations: int
    roofline_seconds: float | None
    rejected: dict[str, str]

    def __str__(self) -> str:
        time = "unknown: no measured ceilings for this device"
        if self.roofline_seconds is not None:
            time = f"{self.roofline_seconds * 1e6:.1f} us"
        lines = [
            f"{self.op}: {self.backend} ({self.reason})",
            f"  moves {self.bytes:,} bytes, {self.operations:,} operations; roofline {time}",
            *(f"  not {backend}: {reason}" for backend, reason in self.rejected.items()),
        ]
        return "\n".join(lines)


def _size(*tensors: torch.Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _linear(x: Any, weight: Any, *tensors: torch.Tensor | None) -> tuple[int, int]:
    rows = x.numel() // max(1, weight.shape[1])
    out = rows * weight.shape[0] * x.element_size()
    return _size(x, weight, *tensors) + out, 2 * rows * weight.numel()


def _gated_linear(x: Any, weight: Any, scores: Any, bias: Any = None, **_: Any) -> tuple[int, int]:
    return _linear(x, weight, scores, bias)


def _packed_linear(x: Any, weight: Any, packed: Any, bias: Any = None) -> tuple[int, int]:
    return _linear(x, weight, packed, bias)


def _gated_adapter(x: Any, down_w: Any, down_s: Any, up_w: Any, up_s: Any, *biases: Any, **_: Any) -> tuple[int, int]:
    rows = x.numel() // max(1, down_w.shape[1])
    moved = 2 * _size(x) + _size(down_w, down_s, up_w, up_s, *biases)
    return moved, 2 * rows * (down_w.numel() + up_w.numel())


def _pack(scores: Any, threshold: float = 0.0) -> tuple[int, int]:
    return _size(scores) + scores.shape[0] * ((scores.shape[1] + 7) // 8), scores.numel()


def _unpack(packed: Any, in_features: int) -> tuple[int, int]:
    return _size(packed) + packed.shape[0] * in_features, packed.shape[0] * in_features


def _normalize(raw: Any, **_: Any) -> tuple[int, int]:
    return 2 * _size(raw), 6 * raw.numel()


def _accumulate(total: Any, new: Any) -> tuple[int, int]:
    return 2 * _size(total) + _size(new), total.numel()


def _adamw(params: Any, grads: Any, exp_avgs: Any, exp_avg_sqs: Any, importances: Any, **_: Any) -> tuple[int, int]:
    written = _size(*params, *exp_avgs, *exp_avg_sqs)
    return 2 * written + _size(*grads, *importances), 14 * sum(p.numel() for p in params)


COUNTS: dict[str, Callable[..., tuple[int, int]]] = {
    "gated_linear": _gated_linear,
    "gated_adapter": _gated_adapter,
    "packed_linear": _packed_linear,
    "pack_gates": _pack,
    "unpack_gates": _unpack,
    "normalize_importance": _normalize,
    "accumulate_importance_": _accumulate,
    "soft_masked_adamw_": _adamw,
}


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which backend would run this call and why, the bytes and operations it needs; nothing is run.

    Args:
        op: the operation or its name.
        args, kwargs: as for the operation itself.

    Raises:
        ValueError: an operation that is not one of this package's.
        BackendUnavailable: a forced backend that cannot run it.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in COUNTS:
        raise ValueError(f"explain: no operation {name!r}; there are {', '.join(COUNTS)}")
    moved, operations = COUNTS[name](*args, **kwargs)
    first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
    dtype = first.dtype if first.is_floating_point() else torch.float32
    choice = dispatch.choose(name, first.device, dtype, dispatch.forced_backend())
    rejected = {
        backend: dispatch.why_not(backend, name, first.device, dtype) or "it could run, but is not the default here"
        for backend in dispatch.BACKENDS
        if backend != choice.backend
    }
    seconds = _roofline(first.device, dtype, moved, operations)
    return Explanation(name, choice.backend, choice.reason, moved, operations, seconds, rejected)


def _roofline(device: torch.device, dtype: torch.dtype, moved: int, operations: int) -> float | None:
    if device.type != "cuda":
        return None
    bandwidth, rates = CEILINGS.get(torch.cuda.get_device_name(device), (None, {}))
    if bandwidth is None or dtype not in rates:
        return None
    return max(moved / bandwidth, operations / rates[dtype])
