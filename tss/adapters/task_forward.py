"""Forward pass of tasks with a head: the backbone's features go through the head, for one task or one per row."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.utils.generic import ModelOutput

from tss.adapters.task_call import TaskCall, calling
from tss.adapters.task_choice import ACTIVE
from tss.tasks.base import IGNORED, check_targets
from tss.tasks.headed import HeadedKind
from tss.tasks.heads import Features, choose_stack, shift_right

Inputs = dict[str, Any]
MAIN_INPUTS = ("input_ids", "inputs", "inputs_embeds", "pixel_values")
"""Names of inputs whose first dimension is the number of rows."""


@dataclass
class MixedOutput(ModelOutput):
    """Output for a batch whose rows belong to tasks with heads of their own.

    Attributes:
        loss: mean over rows of their tasks' losses, if labels were given; with `num_items_in_batch`, the sum over all
            labels divided by it.
        logits: one tensor per row, in the rows' order; not stacked, because heads differ in width. They may differ in
            the last bits from those of the task alone: products of other row counts are summed in another order.
    """

    loss: torch.Tensor | None = None
    logits: list[torch.Tensor] | None = None


def core_of(backbone: Any) -> Any:
    """Return the transformers model inside a compiled module or a PEFT model, or else the backbone itself."""
    core = getattr(backbone, "_orig_mod", backbone)
    return core.get_base_model() if hasattr(core, "get_base_model") else core


def answer(backbone: nn.Module, call: TaskCall, inputs: Inputs) -> Any:
    """Return the output of a task with a head, or of rows that each have a task with a head.

    Args:
        backbone: the model given to `attach`.
        call: the current call.
        inputs: inputs of the forward pass, including labels.

    Raises:
        ValueError: the backbone does not have an input, rows with and without a head are in one batch, or there is not
            one label per row.
    """
    labels, items = inputs.pop("labels", None), inputs.pop("num_items_in_batch", None)
    as_tuple = inputs.pop("return_dict", None) is False
    core = core_of(backbone)
    if call.rows is not None:
        output = _answer_rows(backbone, core, call, inputs, labels, items)
    else:
        assert call.kind is not None
        output = call.kind.compute(core, call.head_logits, inputs, labels, call=part_caller(backbone), items=items)
    return output.to_tuple() if as_tuple else output


def loss(backbone: nn.Module, call: TaskCall, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
    """Compute the loss of one task, skipping what only its logits need."""
    head = call.head_logits if call.labelled else None
    assert call.kind is not None
    if head is None:
        labels = check_token_labels(core_of(backbone), call, inputs, labels)
    return call.kind.loss(core_of(backbone), head, inputs, labels, call=part_caller(backbone))


def check_token_labels(core: Any, call: TaskCall, inputs: Inputs, labels: Any) -> Any:
    """Return labels, checked for the backbone's own language-model head if it has one; other heads check theirs.

    Raises:
        TypeError, ValueError: labels are not token ids, one row per row of the inputs, for example class labels.
    """
    if torch.compiler.is_compiling():  # checked in eager calls only
        return labels
    head = core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None
    rows = next((len(inputs[key]) for key in MAIN_INPUTS if isinstance(inputs.get(key), torch.Tensor)), None)
    if head is None or not hasattr(head, "weight"):
        return labels
    owner = f"task {call.names[0]!r} (generation)" if call.active else f"{type(core).__name__} without a task"
    if isinstance(labels, torch.Tensor) and (labels.dim() != 2 or (rows is not None and rows != len(labels))):
        raise ValueError(
            f"{owner} needs token ids as labels, of shape ({'rows' if rows is None else rows}, length), got "
            f"{tuple(labels.shape)}: for class labels name a classification or extraction task, with task=..."
        )
    shape = labels.shape if isinstance(labels, torch.Tensor) else (rows or "rows", "length")
    labels = check_targets(labels, shape, head.weight.shape[0], owner)
    if (
        call.kind is not None
        and getattr(call.kind, "causal", False)
        and isinstance(inputs.get("input_ids"), torch.Tensor)
    ):
        _check_one_sequence(inputs["input_ids"], labels, owner)
    return labels


def _check_one_sequence(ids: torch.Tensor, labels: torch.Tensor, owner: str) -> None:
    """Raise ValueError if labels are not those of a causal model: the ids themselves, or -100 where there is no loss.

    A few may differ, where inputs are corrupted on purpose. Checked on the CPU only, as `check_targets` does.
    """
    if labels.shape == ids.shape and labels.device.type == "cpu":
        marked = labels != IGNORED
        if int((labels[marked] != ids[marked]).sum()) * 2 <= int(marked.sum()):
            return
    elif labels.shape == ids.shape:
        return
    raise ValueError(
        f"{owner}: a causal model predicts its own input, but labels {tuple(labels.shape)} are not the input_ids "
        f"{tuple(ids.shape)} with {IGNORED} at the prompt: encode examples with model.tss.tasks[name].kind, which "
        "add_task made for the model"
    )


def divides_loss(core: Any) -> bool:
    """Return whether a backbone divides its own loss by `num_items_in_batch`."""
    try:
        # A forward with **kwargs does not imply it: BART's accepts them, but averages the loss regardless.
        source = inspect.getsource(inspect.unwrap(type(core).forward))
    except (OSError, TypeError):  # a class that was defined in a shell
        return False
    return getattr(core, "accepts_loss_kwargs", None) is not False and "loss_function" in source


def divided(core: Any, output: Any, labels: torch.Tensor | None, items: Any) -> Any:
    """Return a backbone's output with its mean loss replaced by the sum over labels divided by `items`.

    Labels are counted as Trainer counts them for `items`. Losses that are no mean over labels, as of regression, stay.
    """
    if labels is None or labels.is_floating_point():
        return output
    causal = LOSS_MAPPING.get(str(getattr(core, "loss_type", ""))) is ForCausalLMLoss
    shifted = causal and not core.config.is_encoder_decoder
    count = ((labels[..., 1:] if shifted else labels) != IGNORED).sum()
    loss = output[0] if isinstance(output, tuple) else output["loss"]
    whole = torch.where(count > 0, loss * (count / items).to(loss.device), 0.0)  # the mean of no labels may be NaN
    if isinstance(output, tuple):
        return (whole, *output[1:])
    output["loss"] = whole
    return output


class Part:
    """A part of a backbone, such as its encoder, that is called for a task; has the part's attributes."""

    def __init__(self, resolve: Callable[[Any], TaskCall], part: nn.Module) -> None:
        self.__dict__.update(_resolve=resolve, _part=part)

    def __call__(self, *args: Any, task: Any = ACTIVE, **kwargs: Any) -> Any:
        with calling(self._resolve(task)):
            return self._part(*args, **kwargs)

    forward = __call__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_part"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._part, name, value)


def part_caller(backbone: Any) -> Callable[..., Any] | None:
    """Return a function that runs a part of the backbone without skipping wrappers of its forward; None: call it.

    accelerate's autocast and offloading wrap the instance's `forward`; FSDP and profilers use hooks. With any of these,
    the whole backbone runs, and a hook captures the part's output.
    """
    core = core_of(backbone)
    if not any("forward" in vars(x) or x._forward_pre_hooks or x._forward_hooks for x in (backbone, core)):
        return None

    def call(part: nn.Module, **inputs: Any) -> Any:
        if part is core:
            return backbone(**inputs)
        caught, thread = [], threading.get_ident()

        def catch(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                caught.append(output)

        if core.config.is_encoder_decoder and part is core.get_encoder():
            start = core.config.decoder_start_token_id
            ids = inputs.get("input_ids")
            if ids is None:  # embeddings: any decoder input will do, as its output is not read
                first = next(inputs[key] for key in MAIN_INPUTS if isinstance(inputs.get(key), torch.Tensor))
                ids = torch.full((len(first), 1), start, device=first.device)
            inputs = {**inputs, "decoder_input_ids": shift_right(ids, start)}
        hook = part.register_forward_hook(catch)
        try:
            backbone(**inputs)
        finally:
            hook.remove()
        return caught[-1]

    return call


def _answer_rows(
    backbone: nn.Module, core: Any, call: TaskCall, inputs: Inputs, labels: Any, items: Any = None
) -> MixedOutput:
    """Run the backbone once for all rows (per stack that heads read), then the rows of each task through its head."""
    assert call.rows is not None
    if missing := [of_task.names[0] for of_task, _ in call.rows if not of_task.labelled]:
        others = sorted(of_task.names[0] for of_task, _ in call.rows if of_task.labelled)
        raise ValueError(
            f"tasks with and without a head cannot share a batch: {', '.join(missing)} would use the language-model "
            f"head, {', '.join(others)} their own; split the batch"
        )
    count, total = len(call.names), None
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} rows: give one per row")
    logits: list[Any] = [None] * count
    passed: dict[str, Features] = {}  # stack -> features of all rows
    for of_task, rows in call.rows:
        kind = of_task.kind
        assert isinstance(kind, HeadedKind)
        stack = choose_stack(core, kind.stack(core))
        if stack not in passed:
            passed[stack] = kind.features_of(core, inputs, part_caller(backbone))
        hidden, mask = passed[stack][:2]
        own = None if labels is None else _labels_of(labels, rows, of_task.names[0]).to(hidden.device)
        output = kind.read(core, of_task.head_logits, Features(hidden[rows], mask[rows]), own, items)
        for i, row in zip(rows, output.logits, strict=True):
            logits[i] = row
        if own is not None:
            share = output.loss * (len(rows) / count if items is None else 1)
            total = share if total is None else total + share
    return MixedOutput(loss=total, logits=logits)


def _labels_of(labels: Any, rows: list[int], task: str) -> torch.Tensor:
    chosen = [torch.as_tensor(labels[i]) for i in rows]
    if len(shapes := {tuple(one.shape) for one in chosen}) > 1:
        raise ValueError(
            f"labels of the rows of task {task!r} have shapes {', '.join(map(str, sorted(shapes)))}: pad them"
        )
    return torch.stack(chosen)
