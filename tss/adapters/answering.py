"""How an attached model answers a call: which task, whose head, and what a batch of mixed tasks gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils.generic import ModelOutput

from tss.adapters.bank import Rows
from tss.errors import StateError
from tss.tasks.headed import HeadedKind
from tss.tasks.heads import choose_stack, features

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle

Inputs = dict[str, Any]
Original = Callable[..., Any]


@dataclass
class MixedOutput(ModelOutput):
    """The answer to a batch whose rows belong to tasks with heads of their own.

    Attributes:
        loss: mean over rows of their tasks' losses, if labels were given.
        logits: one tensor per row, in the rows' order; heads differ in width, so they are not stacked.
    """

    loss: torch.Tensor | None = None
    logits: list[torch.Tensor] | None = None


def answer(model: Any, original: Original, inputs: Inputs) -> Any:
    """The selected task's head on the backbone's features, or the model's own forward pass.

    Raises:
        ValueError: rows with and without a head in one batch; labels for mixed rows that are not one per row.
        StateError: a training step whose soft mask nothing applies.
    """
    handle: TssHandle = model.tss
    selection = handle.selection
    # A head asks the model for features, which comes back here where the model is its own base model.
    if selection is None or handle.inside:
        return original(model, **inputs)
    check_soft_mask(handle)
    heads = {name: handle.heads.of(name) for name in handle.selected}
    if all(head is None for head in heads.values()):
        return original(model, **inputs)
    handle.inside = True
    try:
        if isinstance(selection, Rows):
            return _answer_rows(model, selection, heads, inputs)
        kind, labels = handle.tasks[selection].kind, inputs.pop("labels", None)
        output = kind.compute(model, heads[selection], inputs, labels)
        return output if inputs.get("return_dict") is not False else output.to_tuple()
    finally:
        handle.inside = False


def loss(model: Any, inputs: Inputs) -> torch.Tensor:
    """The loss of the active task, as `answer` gives it, without what only its logits need.

    Raises:
        ValueError: no labels.
        StateError: a training step whose soft mask nothing applies.
    """
    handle: TssHandle = model.tss
    if inputs.get("labels") is None:
        raise ValueError(f"a loss needs labels, got only {', '.join(inputs) or 'nothing'}")
    if handle.active is None:
        return model(**inputs).loss
    check_soft_mask(handle)
    labels, before = inputs.pop("labels"), handle.inside
    handle.inside = True
    try:
        return handle.tasks[handle.active].kind.loss(model, handle.heads.of(handle.active), inputs, labels)
    finally:
        handle.inside = before


def check_soft_mask(handle: TssHandle) -> None:
    """Raise StateError if a training step goes unmasked: `soft_mask="update"` without the handle's own optimizer."""
    applied = handle.options.soft_mask != "update" or handle.optimizer_masks or handle.active != handle.trainable
    if applied or not handle.model.training or not torch.is_grad_enabled():
        return
    if any(getattr(layer, "importance", None) is not None for layer in handle.layers.values()):
        raise StateError(
            'soft_mask="update" is applied by the optimizer: make it with model.tss.optimizer(score_lr=..., '
            'head_lr=...) after train_task (for Trainer: optimizers=(optimizer, None)), or use soft_mask="gradient"'
        )


def check_generates(handle: TssHandle) -> None:
    """Raise ValueError if a task that runs answers with a head of its own, which generates no text."""
    if headed := [name for name in handle.selected if handle.heads.of(name) is not None]:
        raise ValueError(
            f"task {headed[0]!r} is of kind {handle.tasks[headed[0]].kind.kind} and cannot generate text: call the "
            "model for its logits, or generate with a generation task or with no task active"
        )


def _answer_rows(model: Any, rows: Rows, heads: dict[str, Any], inputs: Inputs) -> MixedOutput:
    """One pass of the backbone for all rows, then the rows of each task through its head."""
    handle: TssHandle = model.tss
    if missing := [name for name, head in heads.items() if head is None]:
        raise ValueError(
            f"tasks with and without a head cannot share a batch: {', '.join(missing)} would use the language-model "
            f"head, {', '.join(sorted(set(heads) - set(missing)))} their own; split the batch"
        )
    labels, loss = inputs.pop("labels", None), None
    if labels is not None and len(labels) != len(rows.names):
        raise ValueError(f"{len(labels)} labels for {len(rows.names)} rows: give one per row")
    logits: list[Any] = [None] * len(rows.names)
    passed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # stack -> hidden states and mask of all rows
    for name, head in heads.items():
        kind = handle.tasks[name].kind
        assert isinstance(kind, HeadedKind)
        stack = choose_stack(model, kind.stack(model))
        if stack not in passed:
            passed[stack] = features(model, inputs, stack)
        index = [i for i, other in enumerate(rows.names) if other == name]
        own = None if labels is None else torch.stack([torch.as_tensor(labels[i]) for i in index]).to(handle.device)
        hidden, mask = passed[stack]
        output = kind.read(model, head, hidden[index], mask[index], own)
        for i, row in zip(index, output.logits, strict=True):
            logits[i] = row
        if own is not None:
            share = output.loss * (len(index) / len(rows.names))
            loss = share if loss is None else loss + share
    return MixedOutput(loss=loss, logits=logits)
