"""Argument checks of the operations; every message has the condition, both values and the remedy."""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad

# Dtypes that the operations compute with; PyTorch also has narrower floating dtypes, but only for storage.
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(name: str, tensor: Any) -> None:
    """Check for a dense (strided) tensor."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{name} must be a tensor but is {_brief(tensor)}: convert it, for example with torch.as_tensor"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor but has layout {tensor.layout}: convert it with .to_dense()")


def _brief(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'}, a {type(value).__name__}"


def check_floating(name: str, tensor: Any) -> None:
    """Check for a dense tensor whose dtype is one of FLOATING."""
    check_tensor(name, tensor)
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} must have a floating dtype, one of float16, bfloat16, float32 and float64, but has "
            f"{tensor.dtype}: convert it, for example with .float()"
        )


def check_threshold(threshold: Any) -> None:
    """Check for a number; a tensor could change unnoticed."""
    if not isinstance(threshold, int | float):
        raise TypeError(f"threshold must be a number but is {_brief(threshold)}: use float()")


def check_linear(x: Any, weight: Any, bias: Any) -> None:
    """Check that x (..., in), weight (out, in) and bias (out,) fit together and share a floating dtype and a device."""
    check_floating("x", x)
    check_floating("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight must be (out, in), two dimensions, but has shape {tuple(weight.shape)}: reshape it")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        turned = x.dim() > 0 and x.shape[-1] == weight.shape[0]
        raise ValueError(
            f"x's last dimension must equal weight's in = {weight.shape[1]}, but x has shape {tuple(x.shape)} and "
            f"weight {tuple(weight.shape)}: {'use weight.t()' if turned else 'pass an x of that many features'}"
        )
    if x.dtype != weight.dtype:
        raise TypeError(
            f"x and weight must have one dtype, but x has {x.dtype} and weight {weight.dtype}: convert one, for "
            f"example weight.to(x.dtype), or call under torch.autocast"
        )
    check_device("weight", weight, x)
    if bias is None:
        return
    check_tensor("bias", bias)
    if bias.dim() != 1 or bias.shape[0] != weight.shape[0]:
        raise ValueError(
            f"bias must have shape (out,) = ({weight.shape[0]},) but has {tuple(bias.shape)}: pass one value per output"
        )
    if bias.dtype != x.dtype:
        raise TypeError(
            f"bias must have x's dtype {x.dtype} but has {bias.dtype}: convert it, for example bias.to(x.dtype)"
        )
    check_device("bias", bias, x)


def check_device(name: str, tensor: torch.Tensor, x: torch.Tensor) -> None:
    """Check that the tensor is on x's device."""
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device} but is on {tensor.device}: move it with .to()")


def check_scores(scores: Any, weight: torch.Tensor) -> None:
    """Check that scores are float32, of weight's shape and on its device."""
    check_tensor("scores", scores)
    if scores.shape != weight.shape:
        raise ValueError(
            f"scores must have weight's shape {tuple(weight.shape)} but have {tuple(scores.shape)}: pass one score per "
            "weight"
        )
    if scores.dtype != torch.float32:
        raise TypeError(f"scores must be float32 but are {scores.dtype}: keep float32 and convert only x and weight")
    check_device("scores", scores, weight)


def check_importance(importance: Any, weight: torch.Tensor) -> None:
    """Check that importance is None, or floating, of weight's shape and on its device."""
    if importance is None:
        return
    check_floating("importance", importance)
    if importance.shape != weight.shape:
        raise ValueError(
            f"importance must have weight's shape {tuple(weight.shape)} but has {tuple(importance.shape)}: pass one "
            "value per weight"
        )
    check_device("importance", importance, weight)


def check_packed(packed: Any, weight: torch.Tensor) -> None:
    """Check that packed gates are uint8 (out, ceil(in / 8)) on weight's device."""
    check_tensor("packed gates", packed)
    expected = (weight.shape[0], (weight.shape[1] + 7) // 8)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed gates must be uint8 but are {packed.dtype}: make them with pack_gates")
    if packed.dim() != 2 or packed.shape[0] != expected[0] or packed.shape[1] != expected[1]:
        raise ValueError(
            f"packed gates of a weight {tuple(weight.shape)} must have shape {expected} but have "
            f"{tuple(packed.shape)}: pack scores of the weight's shape"
        )
    check_device("packed gates", packed, weight)


def check_bank(bank: Any, weight: torch.Tensor, name: str = "packed_bank") -> None:
    """Check a bank, the packed gates of every task: uint8 (tasks, out, ceil(in / 8)) on weight's device."""
    check_tensor(name, bank)
    if bank.dtype != torch.uint8:
        raise TypeError(
            f"{name} must be uint8 but is {bank.dtype}: create it with torch.stack from results of pack_gates"
        )
    expected = (weight.shape[0], (weight.shape[1] + 7) // 8)
    if bank.dim() != 3 or bank.shape[1] != expected[0] or bank.shape[2] != expected[1]:
        raise ValueError(
            f"{name} of a weight {tuple(weight.shape)} must have shape (tasks, {expected[0]}, {expected[1]}) but has "
            f"{tuple(bank.shape)}: stack the tasks' packed gates"
        )
    check_device(name, bank, weight)


def check_task_ids(task_ids: Any, x: torch.Tensor) -> None:
    """Check for one int64 id per index of x's first dimension, on x's device; values are handled when the op runs."""
    check_tensor("task_ids", task_ids)
    if task_ids.dtype != torch.int64:
        raise TypeError(f"task_ids must be int64 but are {task_ids.dtype}: convert them with .long()")
    if x.dim() < 2:
        raise ValueError(
            f"x must have a first dimension for task_ids, (rows, in) or (batch, ..., in), but has shape "
            f"{tuple(x.shape)}: use x.unsqueeze(0)"
        )
    if task_ids.dim() != 1 or task_ids.shape[0] != x.shape[0]:
        raise ValueError(
            f"task_ids must have shape ({x.shape[0]},), one id for each index of x's first dimension, but have "
            f"{tuple(task_ids.shape)} for x {tuple(x.shape)}: repeat or select them"
        )
    check_device("task_ids", task_ids, x)


def check_ids_in_bank(task_ids: torch.Tensor, tasks: int) -> list[int]:
    """Return the ids as numbers. Raises ValueError if one is outside a bank of `tasks` tasks."""
    ids = task_ids.tolist()
    for place, task in enumerate(ids):
        if not 0 <= task < tasks:
            refuse_id(place, task, tasks)
    return ids


def refuse_id(place: int, task: int, tasks: int) -> NoReturn:
    """Raise the ValueError for an id outside a bank of `tasks` tasks."""
    there = f"{tasks} tasks, 0 to {tasks - 1}" if tasks else "no tasks"
    raise ValueError(f"task_ids[{place}] is {task}, but the bank has {there}: pass the ids of tasks that are in it")


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Return whether autograd has to differentiate an operation of these tensors.

    Raises NotImplementedError if torch.func or torch.autograd.forward_ad would have to. False while exporting: the
    operators of an exported program refuse a gradient by themselves.
    """
    needed = [tensor for tensor in tensors if tensor is not None]
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in needed)
    if torch.compiler.is_dynamo_compiling():
        # Tangents and levels of tensors cannot be asked for here, so that any of them counts.
        forward = forward_ad._current_level >= 0
        depth = torch._C._functorch.get_dynamic_layer_stack_depth()  # type: ignore[attr-defined]
        backward = torch.is_grad_enabled() and depth > 0
    else:
        forward = forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in needed)
        backward = gradient and torch._C._are_functorch_transforms_active()
    if forward:
        raise NotImplementedError(
            "torch.autograd.forward_ad does not see the gradient of a gated operation: use torch.autograd's backward"
        )
    if backward:
        raise NotImplementedError(
            "torch.func transforms (grad, vmap, jvp, ...) do not see the gradient of a gated operation: use "
            "torch.autograd, or, where no gradient is wanted, call it under torch.no_grad()"
        )
    return gradient and not torch.compiler.is_exporting()


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check that the option is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))} but is {value!r}")


def check_size(name: str, value: Any) -> int:
    """Check that the option is a whole number of at least 0; return it as an int."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be a whole number but is {_brief(value)}: use int()")
    if value < 0:
        raise ValueError(f"{name} must be at least 0 but is {value}")
    return operator.index(value)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Check a dtype of weights: one of FLOATING, or None for torch's default."""
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(
            f"dtype must be one of float16, bfloat16, float32 and float64, or None, but is {dtype}: gates apply to "
            "weights of these dtypes"
        )
