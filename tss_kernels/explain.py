"""Explain what an operation would run and its minimal cost: backend and reasons, bytes, operations, roofline time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from tss_kernels.adamw.arguments import Lists, Options, check_lists, checked_number, checked_options
from tss_kernels.backends.dispatch import VARIABLE, choose, configuration, forced_backend, select
from tss_kernels.backends.predictions import Prediction, architecture_of, predicted
from tss_kernels.backends.registry import BACKENDS, OPERATIONS, why_not
from tss_kernels.gated_adapter.api import check_adapter
from tss_kernels.gated_linear.api import GatedMap, check_product
from tss_kernels.gates.api import check_pack, check_unpack
from tss_kernels.importance.api import check_accumulation, check_raw, check_update
from tss_kernels.modules import GatedAdapter, GatedAdapterLinear
from tss_kernels.multi_task.api import check_multi_task_adapter, check_multi_task_linear

Tensor = torch.Tensor


class Ceiling(NamedTuple):
    """Limits of one device, measured or assumed: bytes read and written per second, operations per second by dtype."""

    bytes_per_second: float
    flops_per_second: dict[torch.dtype, float]
    basis: str


# Assumed for a device copy and for large products of random data: no result file records such a measurement. Devices
# not listed here get no roofline time.
CEILINGS = {"NVIDIA H200": Ceiling(4.3e12, {torch.bfloat16: 790e12, torch.float16: 790e12}, "assumed")}


@dataclass(frozen=True)
class Explanation:
    """What one call would run.

    bytes: moved if everything is written once and read once, raw importance twice; flops: of the forward pass alone.
    roofline_seconds is None if it is unknown, and `roofline_note` says why; `rejected` maps every other backend to why
    it was not chosen. predicted: the forward pass's time by backend, counted and not measured; `predicted_note` says
    for which chip it was counted, or why it was not.
    """

    op: str
    backend: str
    configuration: str
    reason: str
    bytes: int
    flops: int
    roofline_seconds: float | None
    roofline_note: str
    rejected: dict[str, str] = field(default_factory=dict)
    predicted: dict[str, Prediction] | None = None
    predicted_note: str = ""

    def __str__(self) -> str:
        time = f"{self.roofline_seconds * 1e6:.1f} us" if self.roofline_seconds is not None else "unknown"
        lines = [
            f"{self.op}: backend {self.backend} ({self.reason})",
            f"  configuration: {self.configuration}",
            f"  moves {self.bytes:,} bytes, computes {self.flops:,} operations, roofline {time} ({self.roofline_note})",
        ]
        times = "; ".join(f"{name} {one}" for name, one in (self.predicted or {}).items()) or "no time"
        lines.append(f"  predicted: {times} ({self.predicted_note})")
        return "\n".join(lines + [f"  not {name}: {why}" for name, why in self.rejected.items()])


class _Cost(NamedTuple):
    """Bytes and operations of a call, the tensor that decides the backend, and the shape used for that choice."""

    bytes: int
    flops: int
    main: Tensor
    shape: tuple[int, ...]


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _map(values: dict[str, Any], weight: str, scores: str, bias: str, importance: str) -> GatedMap:
    return values[weight], values[scores], values[bias], values["threshold"], values[importance], False


def _linear(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None) -> _Cost:
    out_features, in_features = weight.shape
    rows = x.numel() // max(in_features, 1)
    moved = _bytes(x, weight, gates, bias) + rows * out_features * x.element_size()
    return _Cost(moved, 2 * rows * weight.numel(), x, (rows, in_features, out_features))


def _gated_linear(values: dict[str, Any]) -> _Cost:
    check_product(values["x"], _map(values, "weight", "scores", "bias", "importance"))
    return _linear(values["x"], values["weight"], values["scores"], values["bias"])


def _packed_linear(values: dict[str, Any]) -> _Cost:
    check_product(values["x"], (values["weight"], values["packed"], values["bias"], 0.0, None, True))
    return _linear(values["x"], values["weight"], values["packed"], values["bias"])


def _gated_adapter(values: dict[str, Any]) -> _Cost:
    names = ("weight", "scores", "bias", "importance")
    maps = [_map(values, *(f"{side}_{name}" for name in names)) for side in ("down", "up")]
    check_adapter(values["x"], maps[0], maps[1], values["activation"])
    x, down = values["x"], values["down_weight"]
    operands = [values[f"{layer}_{part}"] for layer in ("down", "up") for part in ("weight", "scores", "bias")]
    rows = x.numel() // max(down.shape[1], 1)
    moved = 2 * _bytes(x) + rows * down.shape[0] * down.element_size() + _bytes(*operands)
    return _Cost(moved, 4 * rows * down.numel(), x, (rows, down.shape[1], down.shape[0]))


def _of_batch(bank: Tensor, task_ids: Tensor) -> Tensor:
    """Return the most gates that a batch can read: those of one task per entry, each task read once."""
    return bank[: task_ids.numel()]


def _multi_task_linear(values: dict[str, Any]) -> _Cost:
    x, weight, bank, task_ids, bias = (values[name] for name in ("x", "weight", "packed_bank", "task_ids", "bias"))
    check_multi_task_linear(x, weight, bank, task_ids, bias)
    cost = _linear(x, weight, _of_batch(bank, task_ids), bias)
    return cost._replace(bytes=cost.bytes + _bytes(task_ids))


def _multi_task_adapter(values: dict[str, Any]) -> _Cost:
    check_multi_task_adapter(**values)
    x, down, task_ids = values["x"], values["down_weight"], values["task_ids"]
    operands = [values[f"{layer}_{part}"] for layer in ("down", "up") for part in ("weight", "bias")]
    banks = [_of_batch(values[f"{layer}_bank"], task_ids) for layer in ("down", "up")]
    rows = x.numel() // max(down.shape[1], 1)
    moved = 2 * _bytes(x) + rows * down.shape[0] * down.element_size() + _bytes(*operands, *banks, task_ids)
    return _Cost(moved, 4 * rows * down.numel(), x, (rows, down.shape[1], down.shape[0]))


def _pack_gates(values: dict[str, Any]) -> _Cost:
    scores = values["scores"]
    check_pack(scores, values["threshold"])
    moved = _bytes(scores) + scores.shape[0] * ((scores.shape[1] + 7) // 8)
    return _Cost(moved, scores.numel(), scores, tuple(scores.shape))


def _unpack_gates(values: dict[str, Any]) -> _Cost:
    check_unpack(values["packed"], values["in_features"])
    packed, gates = values["packed"], values["packed"].shape[0] * values["in_features"]
    return _Cost(_bytes(packed) + gates, gates, packed, tuple(packed.shape))


def _normalize(values: dict[str, Any]) -> _Cost:
    raw = values["raw"]
    check_raw(raw, values["per"])
    # Two reads: the standard deviation needs the mean, and the result needs both.
    return _Cost(2 * _bytes(raw) + 4 * raw.numel(), 7 * raw.numel(), raw, tuple(raw.shape))


def _accumulate(values: dict[str, Any]) -> _Cost:
    total, new = values["total"], values["new"]
    check_accumulation(total, new)
    return _Cost(2 * _bytes(total) + _bytes(new), total.numel(), total, tuple(total.shape))


def _update(values: dict[str, Any]) -> _Cost:
    total, raw = values["total"], values["raw"]
    check_update(total, raw, values["per"])
    return _Cost(2 * _bytes(raw) + 2 * _bytes(total), 8 * raw.numel(), total, tuple(raw.shape))


def _adamw(values: dict[str, Any]) -> _Cost:
    lists = Lists(*(list(values[name]) for name in Lists._fields))
    check_lists(lists)
    checked_options(*(values[name] for name in Options._fields))
    if not isinstance(values["step"], torch.Tensor | list | tuple):
        checked_number("step", values["step"])
        checked_number("lr", values["lr"])
    changed: Sequence[Tensor] = lists.written()
    if not values["params"]:
        raise ValueError("params is empty: there is nothing to explain")
    elements = sum(param.numel() for param in values["params"])
    moved = 2 * _bytes(*changed) + _bytes(*values["grads"], *values["importances"])
    return _Cost(moved, 15 * elements, values["params"][0], (elements,))


_COSTS: dict[str, Callable[[dict[str, Any]], _Cost]] = {
    "gated_linear": _gated_linear,
    "gated_adapter": _gated_adapter,
    "pack_gates": _pack_gates,
    "unpack_gates": _unpack_gates,
    "packed_linear": _packed_linear,
    "normalize_importance": _normalize,
    "accumulate_importance_": _accumulate,
    "update_importance_": _update,
    "soft_masked_adamw_": _adamw,
    "multi_task_linear": _multi_task_linear,
    "multi_task_adapter": _multi_task_adapter,
}


def _roofline(device: torch.device, dtype: torch.dtype, moved: int, flops: int) -> tuple[float | None, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    ceiling = CEILINGS.get(name)
    if ceiling is None:
        return None, f"no measured ceilings for {name}"
    memory = moved / ceiling.bytes_per_second
    if flops == 0 or dtype not in ceiling.flops_per_second:
        return memory, f"memory of {name}, {ceiling.basis}; its rate of operations in {dtype} is unknown"
    arithmetic = flops / ceiling.flops_per_second[dtype]
    return max(memory, arithmetic), f"{'memory' if memory >= arithmetic else 'arithmetic'} of {name}, {ceiling.basis}"


def _rejected(op: str, chosen: str, default: str, main: Tensor) -> dict[str, str]:
    reasons = {}
    for name in BACKENDS:
        if name == chosen:
            continue
        obstacle = why_not(name, op, main.device, main.dtype)
        if obstacle is not None:
            reasons[name] = f"{obstacle.reason}; {obstacle.remedy}"
        elif chosen != default:
            reasons[name] = f"could run, but {chosen} was forced"
        else:
            reasons[name] = f"could run, but {default} is the default here"
    return reasons


def _layer_call(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the operation that a layer of this package runs for an input, and its arguments."""
    if not isinstance(layer, (GatedAdapterLinear, GatedAdapter)):
        raise ValueError(f"explain knows the layers GatedAdapterLinear and GatedAdapter, not {type(layer).__name__}")
    if kwargs or len(args) != 1 or not isinstance(args[0], torch.Tensor):
        raise TypeError(
            f"explain(layer, x) takes a {type(layer).__name__} and its input tensor x, got {len(args)} inputs"
        )
    (x,) = args
    if isinstance(layer, GatedAdapterLinear):
        if layer.packed is not None:
            return "packed_linear", (x, layer.weight, layer.packed, layer.bias), {}
        importance = layer.importance if layer.mask_gradient else None
        options = {"threshold": layer.threshold, "importance": importance}
        return "gated_linear", (x, layer.weight, layer.scores, layer.bias), options
    options = {"activation": layer.activation, "threshold": layer.down.threshold}
    for side, one in (("down", layer.down), ("up", layer.up)):
        if one.packed is not None:
            raise ValueError(
                f"the adapter's {side} layer has packed gates: explain its layers, as explain(adapter.down, x)"
            )
        options |= {
            f"{side}_weight": one.weight.to(x.dtype), f"{side}_scores": one.scores,
            f"{side}_bias": None if one.bias is None else one.bias.to(x.dtype),
            f"{side}_importance": one.importance if one.mask_gradient else None,
        }  # fmt: skip
    return "gated_adapter", (x,), options


def explain(op: str | Callable[..., Any] | torch.nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """Explain what a call would run, without running it.

    Args:
        op: an operation of this package or its name; or one of its layers, `GatedAdapterLinear` or `GatedAdapter`.
        args, kwargs: the arguments of the call; for a layer, its input x.

    Raises:
        ValueError: not an operation or layer of this package; also whatever the operation itself raises for invalid
            arguments.
        TypeError: missing or extra arguments.
        BackendUnavailable: a forced backend cannot run it.
    """
    import tss_kernels

    if isinstance(op, torch.nn.Module):
        op, args, kwargs = _layer_call(op, *args, **kwargs)
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in OPERATIONS:
        raise ValueError(
            f"no operation {name!r}: explain knows {', '.join(OPERATIONS)}, GatedAdapterLinear, GatedAdapter"
        )
    signature = inspect.signature(getattr(tss_kernels, name))
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"explain({name!r}, ...) takes the arguments of the call that it explains, {name}{signature}, but {error}; "
            "`python -m tss_kernels` shows what is available on this machine"
        ) from None
    bound.apply_defaults()
    cost = _COSTS[name](bound.arguments)
    device, dtype = cost.main.device, cost.main.dtype
    choice = choose(name, device, dtype, cost.shape)
    backend, reason, setting = select(name, device, dtype, cost.shape), choice.reason, choice.configuration
    if forced_backend() is not None:
        reason = f"forced by use_backend or {VARIABLE}"
        setting = configuration(name, backend, device, dtype, cost.shape)
    seconds, note = _roofline(device, dtype, cost.bytes, cost.flops)
    rejected = _rejected(name, backend, choice.backend, cost.main)
    times, said = predicted(name, architecture_of(device), dtype, cost.shape)
    return Explanation(name, backend, setting, reason, cost.bytes, cost.flops, seconds, note, rejected, times, said)
