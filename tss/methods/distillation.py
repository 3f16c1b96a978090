"""Distillation for LwF: past tasks' logits on another task's inputs, with adapters as they were and as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div, log_softmax

from tss.adapters.checkpointing import evaluation_mode
from tss.adapters.frozen_prefix import reuse_states
from tss.adapters.task_call import TaskCall, calling
from tss.adapters.task_forward import part_caller
from tss.methods.base import Batch
from tss.tasks.base import IGNORED
from tss.tasks.headed import HeadedKind
from tss.tasks.heads import Features, architecture, choose_stack, shift_right

if TYPE_CHECKING:
    from tss.adapters import TssHandle

Answers = list[torch.Tensor]
SiteWeights = Sequence[tuple[torch.Tensor, ...]]


def distillation_loss(
    handle: TssHandle, past: Sequence[str], teacher: SiteWeights, batch: Batch, temperature: float
) -> torch.Tensor:
    """Return the sum over past tasks of T^2 * KL(teacher || live adapters) at temperature T; scalar, float32.

    Args:
        handle: handle that is training a task on plain adapters.
        past: names of sealed tasks.
        teacher: the adapters' earlier weights, by site.
        batch: batch of the task being trained.
        temperature: divides the logits.
    """
    inputs = dict(batch)
    states, labels = inputs.pop("prefix_states", None), inputs.pop("labels")
    assert handle.trainable is not None
    targets = labels if handle.tasks[handle.trainable].kind.kind == "generation" else None
    with evaluation_mode(handle.model), reuse_states(None if states is None else handle.frozen_prefix, states):
        with torch.no_grad():
            before = answers(handle, past, inputs, targets, teacher)
        now = answers(handle, past, inputs, targets, None)
    pairs = zip(before, now, strict=True)
    return torch.stack([divergence(old, new, temperature) for old, new in pairs]).sum()


def divergence(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over rows of logits (N, classes); float32."""
    target, found = (log_softmax(logits.float() / temperature, dim=-1) for logits in (teacher, student))
    return temperature**2 * kl_div(found, target, log_target=True, reduction="batchmean")


def answers(
    handle: TssHandle,
    past: Sequence[str],
    inputs: Batch,
    targets: torch.Tensor | None,
    weights: SiteWeights | None,
) -> Answers:
    """Return logits (rows, classes) of every past task with a head, and of the language model if a past task generates.

    Args:
        handle: handle of the model.
        past: names of sealed tasks.
        inputs: inputs of a batch, without labels.
        targets: the batch's labels if it is of a generation task, else None.
        weights: weights of the adapters by site; None runs the live ones.
    """
    found: Answers = []
    passed: dict[str, Features] = {}  # all heads on one stack share one pass
    generates = False
    for name in past:
        sealed = handle.resolve(name)
        call, kind = TaskCall(sealed.owner, sealed.names, sealed.kind, weights, sealed.head), sealed.kind
        if not isinstance(kind, HeadedKind):
            if not generates:
                found.append(vocabulary_answers(handle, call, inputs, targets))
            generates = True
            continue
        stack = choose_stack(handle.core, kind.stack(handle.core))
        if stack not in passed:
            with calling(call):
                passed[stack] = kind.features_of(handle.core, inputs, part_caller(handle.backbone))
        logits: torch.Tensor = kind.read(handle.core, call.head_logits, passed[stack]).logits
        found.append(logits[passed[stack].mask.bool()] if logits.dim() == 3 else logits)
    return found


def vocabulary_answers(handle: TssHandle, call: TaskCall, inputs: Batch, targets: torch.Tensor | None) -> torch.Tensor:
    """Return logits (tokens, vocabulary) of the language model's head at the tokens of targets, or of sources."""
    core: Any = handle.core
    run = part_caller(handle.backbone) or (lambda module, **named: module(**named))
    extra, mask = {}, inputs["attention_mask"].bool()
    if architecture(core) == "decoder" and targets is not None:
        mask = torch.nn.functional.pad(targets[:, 1:] != IGNORED, (0, 1))  # logits are for the next token
    if architecture(core) == "encoder-decoder":
        if targets is None:
            extra["decoder_input_ids"] = shift_right(inputs["input_ids"], core.config.decoder_start_token_id)
        else:
            extra["decoder_input_ids"] = core.prepare_decoder_input_ids_from_labels(targets)
            mask = targets != IGNORED
    with calling(call):
        return run(core, **inputs, **extra, use_cache=False).logits[mask]
