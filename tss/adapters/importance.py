"""Importance of the task just trained: one pass over its training data, without updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as distributed
from torch import nn

from tss.errors import StateError
from tss.tasks.base import IGNORED, PAD_MULTIPLE, TaskKind
from tss_kernels import GatedAdapterLinear, update_importance_

Layers = Mapping[str, GatedAdapterLinear]
PARTS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "signed": lambda gradient: gradient,
    "absolute": torch.abs,
    "squared": torch.square,
}
LENGTH = 128  # source and target length for raw examples; for other lengths, pass batches


def raw_importance(layers: Layers, losses: Iterable[torch.Tensor], of: str) -> dict[str, torch.Tensor]:
    """Return a = mean over batches of (dL/ds) * g, its absolute value or its square: float64 (out, in) by layer.

    In distributed training, the mean is over the batches of all processes, so that all of them seal the same.

    Args:
        layers: layers that run on their live scores.
        losses: one differentiable loss per batch.
        of: "signed", "absolute" or "squared".

    Raises:
        ValueError: there is no batch.
        StateError: a gradient is not finite.
    """
    sums = {name: torch.zeros_like(layer.scores, dtype=torch.float64) for name, layer in layers.items()}
    gates = {name: layer.gate() for name, layer in layers.items()}
    batches = 0
    with plain_gradients(layers):
        for loss in losses:
            gradients = torch.autograd.grad(loss, [layer.scores for layer in layers.values()], allow_unused=True)
            for name, gradient in zip(layers, gradients, strict=True):
                if gradient is not None:  # a layer that the task does not use has no importance for it
                    sums[name] += torch.where(gates[name], PARTS[of](gradient.double()), 0)
            batches += 1
    batches = _over_ranks(sums, batches)
    if not batches:
        raise ValueError("seal_task: the data has no batches; give at least one, or None for no importance")
    for name, total in sums.items():
        if not total.isfinite().all():
            raise StateError(
                f"seal_task: the score gradient of {name} is not finite, so the task has no importance; it is still "
                "being trained: check its data and learning rate, or use bfloat16 instead of float16"
            )
    return {name: total / batches for name, total in sums.items()}


def _over_ranks(sums: dict[str, torch.Tensor], batches: int) -> int:
    """Add up the sums of all processes in place; return the number of batches of all of them."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return batches
    count = torch.tensor(float(batches), dtype=torch.float64, device=next(iter(sums.values())).device)
    for tensor in (*sums.values(), count):
        distributed.all_reduce(tensor)
    return int(count.item())


@torch.no_grad()
def accumulate(layers: Layers, raw: Mapping[str, torch.Tensor], per: str, scale: str = "paper") -> None:
    """Set I <- max(I, |tanh((a - mean a) / (std a + 1e-6))|) in every layer, starting from 0.

    Args:
        layers: layers whose importance is updated.
        raw: a of each layer, (out, in).
        per: mean and standard deviation over the "tensor" or over each "row".
        scale: "paper" uses a as it is; "relative" divides it by its root mean square, unless that is 0.
    """
    if scale == "relative":
        sizes = {name: a.square().mean().sqrt() for name, a in raw.items()}
        raw = {name: torch.where(sizes[name] > 0, a / sizes[name], a) for name, a in raw.items()}
    for name, layer in layers.items():
        total = layer.importance
        if total is None:
            total = torch.zeros_like(raw[name], dtype=layer.scores.dtype)
        layer.importance = update_importance_(total, raw[name], per=per)


@contextmanager
def plain_gradients(layers: Layers) -> Iterator[None]:
    """Compute score gradients without the soft mask within a `with` block."""
    masked = {name: layer.mask_gradient for name, layer in layers.items()}
    for layer in layers.values():
        layer.mask_gradient = False
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.mask_gradient = masked[name]


# Main input -> dimensions that it has in a single example; a batch has more.
DIMENSIONS = {"input_ids": 1, "pixel_values": 3, "inputs_embeds": 2}


def batches_of(
    kind: TaskKind, data: Any, batch_size: int, *, tokenizer: Any, pad_id: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield batches as they are, and single examples (raw or encoded) encoded and collated, `batch_size` at a time.

    Lists and NumPy arrays become tensors. Rows that have a mask keep it.

    Raises:
        ValueError: a batch has no labels or rows of different lengths, or there is no tokenizer for raw examples.
    """
    for i, batch in enumerate(_grouped(kind, data, batch_size, tokenizer, pad_id)):
        if batch.get("labels") is None:
            raise ValueError(f"seal_task: batch {i} has no labels, only {', '.join(batch)}; add them")
        yield {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in batch.items()}


def _grouped(kind: TaskKind, data: Any, batch_size: int, tokenizer: Any, pad_id: int) -> Iterator[Mapping[str, Any]]:
    group: list[dict[str, Any]] = []
    for item in data:
        if not isinstance(item, Mapping):
            raise ValueError(f"seal_task: data has a {type(item).__name__}, expected dicts with input_ids and labels")
        tensors = {key: _as_tensor(key, value) for key, value in item.items()}
        main = next((key for key in DIMENSIONS if key in tensors), None)
        if main is not None and isinstance(tensors[main], torch.Tensor) and tensors[main].dim() > DIMENSIONS[main]:
            yield tensors
            continue
        group.append(dict(item) if main is None else _inputs(tensors))
        if len(group) == batch_size:
            yield _collate(kind, group, tokenizer, pad_id)
            group = []
    if group:
        yield _collate(kind, group, tokenizer, pad_id)


def _inputs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a row; the columns of text that a tokenized dataset keeps are no inputs of the model."""
    return {key: value for key, value in row.items() if isinstance(value, torch.Tensor)}


def _as_tensor(key: str, value: Any) -> Any:
    """Convert numbers in lists or arrays to a tensor; return anything else (text, None) as it is."""
    if isinstance(value, torch.Tensor) or value is None or isinstance(value, (str, bytes)):
        return value
    first = value
    while isinstance(first, (list, tuple)):
        if not first:
            return value
        first = first[0]
    if isinstance(first, str):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"seal_task: {key} cannot become a tensor ({error}); pad the rows of a batch to one length, or give rows "
            "one by one"
        ) from error


def _collate(kind: TaskKind, group: Sequence[Mapping[str, Any]], tokenizer: Any, pad_id: int) -> Mapping[str, Any]:
    first = group[0]
    if not DIMENSIONS.keys() & first.keys():
        if tokenizer is None:
            raise ValueError(
                f"seal_task: got examples with {', '.join(first)}; set model.tss.tokenizer to encode them, or give "
                "batches of tensors with input_ids and labels"
            )
        examples = [dict(example) for example in group]
        rows = kind.encode_all(examples, tokenizer, source_length=LENGTH, target_length=LENGTH)
        return kind.collate(rows, pad_id=tokenizer.pad_token_id or 0)
    if first.keys() <= {"input_ids", "labels", "token_type_ids"}:
        lists = [{key: torch.as_tensor(value).reshape(-1).tolist() for key, value in row.items()} for row in group]
        return kind.collate(lists, pad_id=pad_id)
    for row in group:
        if different := sorted(row.keys() ^ first.keys()):
            raise ValueError(
                f"seal_task: {different[0]} is in some of the examples and not in others, so they make no batch: give "
                "all of them the same columns"
            )
    return {key: _stack(key, [row[key] for row in group], kind, pad_id) for key in first}


def _stack(key: str, values: Sequence[torch.Tensor], kind: TaskKind, pad_id: int) -> torch.Tensor:
    """Stack rows of one input; sequences are padded right, to the longest rounded up to `PAD_MULTIPLE`."""
    if key == "labels" and kind.kind == "classification":
        return torch.stack([value.reshape(()) for value in values])
    if values[0].dim() != 1 or values[0].is_floating_point():
        return torch.stack(list(values))
    width = max(len(value) for value in values)
    width = -(-width // PAD_MULTIPLE) * PAD_MULTIPLE
    fill = {"input_ids": pad_id, "labels": IGNORED}.get(key, 0)
    return torch.stack([nn.functional.pad(value, (0, width - len(value)), value=fill) for value in values])
