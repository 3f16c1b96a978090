"""The importance of the task just learned: one pass over its training data, no update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tss.adapters.float32 import TaskHeads
from tss.errors import StateError
from tss_kernels import GatedAdapterLinear, update_importance_

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle
    from tss.tasks.base import TaskKind

Layers = Mapping[str, GatedAdapterLinear]
LENGTH = 128  # source and target length for raw examples; whoever wants another hands over batches


def raw_importance(layers: Layers, losses: Iterable[torch.Tensor], of: str) -> dict[str, torch.Tensor]:
    """a = mean over batches of (dL/ds) * g, or of its absolute value: float64 (out, in) by layer.

    Args:
        layers: running from their live scores.
        losses: one differentiable loss per batch.
        of: "signed" or "absolute".

    Raises:
        ValueError: no batch.
        StateError: a gradient that is not finite.
    """
    sums = {name: torch.zeros_like(layer.scores, dtype=torch.float64) for name, layer in layers.items()}
    gates = {name: layer.gate() for name, layer in layers.items()}
    batches = 0
    with plain_gradients(layers):
        for loss in losses:
            gradients = torch.autograd.grad(loss, [layer.scores for layer in layers.values()], allow_unused=True)
            for name, gradient in zip(layers, gradients, strict=True):
                if gradient is not None:  # a layer that the task does not pass through matters to it nowhere
                    sums[name] += torch.where(gates[name], gradient.abs() if of == "absolute" else gradient, 0)
            batches += 1
    if not batches:
        raise ValueError("seal_task: the data holds no batch; give at least one, or None for no importance")
    for name, total in sums.items():
        if not total.isfinite().all():
            raise StateError(
                f"seal_task: the score gradient of {name} is not finite, so the task has no importance; it is still "
                "being learned: check its data and learning rate, or use bfloat16 in place of float16"
            )
    return {name: total / batches for name, total in sums.items()}


@torch.no_grad()
def accumulate(layers: Layers, raw: Mapping[str, torch.Tensor], per: str) -> None:
    """I <- max(I, |tanh((a - mean a) / (std a + 1e-6))|) in every layer, starting from 0."""
    for name, layer in layers.items():
        total = layer.importance
        if total is None:
            total = torch.zeros_like(raw[name], dtype=layer.scores.dtype)
        layer.importance = update_importance_(total, raw[name], per=per)


@contextmanager
def plain_gradients(layers: Layers) -> Iterator[None]:
    """Score gradients without the soft mask."""
    masked = {name: layer.mask_gradient for name, layer in layers.items()}
    for layer in layers.values():
        layer.mask_gradient = False
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.mask_gradient = masked[name]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout; every module's own mode is given back."""
    training = {module: module.training for module in _with_modes(model)}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            if isinstance(module, TaskHeads):
                module.train(mode)
            module.training = mode


def _with_modes(module: nn.Module) -> Iterator[nn.Module]:
    """All modules that have a mode of their own: heads take theirs over, and there may be thousands."""
    yield module
    if not isinstance(module, TaskHeads):
        for child in module.children():
            yield from _with_modes(child)


def losses_of(handle: TssHandle, kind: TaskKind, data: Any, batch_size: int) -> Iterator[torch.Tensor]:
    """One differentiable loss per batch of the active task, in the model's present mode.

    Raises:
        ValueError: a batch without labels, or examples without a tokenizer to encode them.
    """
    for i, batch in enumerate(_batches(handle, kind, data, batch_size)):
        inputs = {key: v.to(handle.device) if isinstance(v, torch.Tensor) else v for key, v in batch.items()}
        if inputs.get("labels") is None:
            raise ValueError(f"seal_task: batch {i} has no labels, only {', '.join(inputs)}; add them")
        with torch.enable_grad():
            loss = handle.loss(**inputs)
        yield loss


def _batches(handle: TssHandle, kind: TaskKind, data: Any, batch_size: int) -> Iterator[Mapping[str, Any]]:
    """Batches as they are; single examples (raw, or encoded rows) encoded and collated, `batch_size` at a time."""
    group: list[Mapping[str, Any]] = []
    for item in data:
        if not isinstance(item, Mapping):
            raise ValueError(f"seal_task: data gives a {type(item).__name__}, expected dicts with input_ids and labels")
        if isinstance(item.get("input_ids"), torch.Tensor) and item["input_ids"].dim() > 1:
            yield item
            continue
        group.append(item)
        if len(group) == batch_size:
            yield _collate(handle, kind, group)
            group = []
    if group:
        yield _collate(handle, kind, group)


def _collate(handle: TssHandle, kind: TaskKind, group: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if "input_ids" in group[0]:
        rows = [{key: torch.as_tensor(value).reshape(-1).tolist() for key, value in row.items()} for row in group]
        pad = getattr(handle.tokenizer, "pad_token_id", None)
        pad = getattr(handle.model.config, "pad_token_id", None) if pad is None else pad
        return kind.collate(rows, pad_id=0 if pad is None else pad)
    if handle.tokenizer is None:
        raise ValueError(
            f"seal_task: got examples with {', '.join(group[0])}; set model.tss.tokenizer to encode them, or give "
            "batches of tensors with input_ids and labels"
        )
    examples = [dict(example) for example in group]
    rows = kind.encode_all(examples, handle.tokenizer, source_length=LENGTH, target_length=LENGTH)
    return kind.collate(rows, pad_id=handle.tokenizer.pad_token_id or 0)
