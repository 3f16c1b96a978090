"""Base class of the kinds of tasks: encoding of examples, the head on the backbone, and scoring of predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
from torch import nn

Example = dict[str, Any]
Encoded = dict[str, list[int]]
Batch = dict[str, torch.Tensor]
HeadFunction = Callable[[torch.Tensor], torch.Tensor]
Items = torch.Tensor | int | None

IGNORED = -100  # the label that every loss of PyTorch and transformers skips
PAD_MULTIPLE = 8  # tensor cores work best with lengths that are multiples of eight


class TaskKind(ABC):
    """A kind of task with its settings; instances are frozen, hashable and equal when their settings are."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def main_metric(self) -> str:
        """The entry of `score` that model selection and the continual metrics use."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, with "kind"; `kind_from_dict` is the inverse."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}  # type: ignore[call-overload]
        return {"kind": self.kind, **settings}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> TaskKind:
        """The same as `kind_from_dict`."""
        return kind_from_dict(settings)

    def encode(self, example: Example, tokenizer: Any, *, source_length: int, target_length: int) -> Encoded:
        """Encode one example as token ids and labels; `encode_all` is faster for many examples."""
        return self.encode_all([example], tokenizer, source_length=source_length, target_length=target_length)[0]

    @abstractmethod
    def encode_all(
        self, examples: Sequence[Example], tokenizer: Any, *, source_length: int, target_length: int
    ) -> list[Encoded]:
        """Encode examples as "input_ids" (at most `source_length`) and, for examples with their answer, "labels".

        Sources are tokenized in batches, not one by one. Examples for prediction may omit the answer's field.
        """

    @abstractmethod
    def collate(self, encoded: Sequence[Encoded], *, pad_id: int, multiple: int = PAD_MULTIPLE) -> Batch:
        """Collate rows into a batch of int64 tensors, padded right: input_ids, attention_mask, and any labels.

        Args:
            encoded: the rows.
            pad_id: padding value of input_ids.
            multiple: every length is padded to a multiple of it; 1 pads to the longest row only.
        """

    @abstractmethod
    def check_model(self, model: Any) -> None:
        """Raise ValueError, naming what is missing, unless a model of this architecture can learn this kind."""

    @abstractmethod
    def make_head(self, hidden_size: int, dropout: float, generator: torch.Generator | None = None) -> nn.Module | None:
        """Create the task's own float32 head; None for kinds that use the model's language-model head."""

    def for_model(self, model: Any) -> TaskKind:
        """Return this kind with the settings for a model of this architecture.

        Raises:
            ValueError: the model cannot learn this kind; the message says what is missing.
        """
        self.check_model(model)
        return self

    def apply_head(self, tensors: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """Return the output, in evaluation mode, of a head with these tensors: a sealed task has no modules.

        Args:
            tensors: named as in the `state_dict` of the head that `make_head` returns.
            hidden: (..., H), any floating dtype.
        """
        raise ValueError(f"a task of kind {self.kind} has no head")

    @abstractmethod
    def compute(
        self,
        model: nn.Module,
        head: HeadFunction | None,
        inputs: Mapping[str, Any],
        labels: torch.Tensor | None = None,
        *,
        call: Callable[..., Any] | None = None,
        items: Items = None,
    ) -> Any:
        """Run backbone and head; return a transformers output with `logits`, and `loss` (scalar) if labels are given.

        Args:
            model: the backbone.
            head: hidden states (..., H) -> logits, for kinds that have a head.
            inputs: inputs of the backbone's forward pass, without labels.
            labels: labels as collated by the kind.
            call: runs a part of the backbone with keyword arguments; None calls the part itself.
            items: number of labels to average the loss over, if it covers more than this batch.
        """

    def loss(
        self,
        model: nn.Module,
        head: HeadFunction | None,
        inputs: Mapping[str, Any],
        labels: torch.Tensor,
        *,
        call: Callable[..., Any] | None = None,
    ) -> torch.Tensor:
        """Return the loss that `compute` gives (scalar), for callers that do not use the logits.

        Kinds may skip the computation of logits at positions without a label.
        """
        return self.compute(model, head, inputs, labels, call=call).loss

    @abstractmethod
    def predict(
        self, model: nn.Module, batch: Batch, tokenizer: Any, *, examples: Sequence[Example] | None = None
    ) -> list[Any]:
        """Return decoded predictions, one per row; `model(**inputs)` must run this task.

        Args:
            model: called without labels under `torch.no_grad()`; the caller has set it to eval mode.
            batch: a batch from `collate`, on the model's device.
            tokenizer: the tokenizer that encoded the batch.
            examples: the examples of the rows; if given, a kind may use them to complete what truncation cut off.
        """

    @abstractmethod
    def references(self, examples: Sequence[Example]) -> list[Any]:
        """Return the correct answers, in the format of `predict`."""

    @abstractmethod
    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Return all metrics of this kind, each between 0 and 100."""

    @abstractmethod
    def signature(self) -> str:
        """Return one line with the library, version and settings that `score` uses."""


def kind_from_dict(settings: Mapping[str, Any]) -> TaskKind:
    """Create a kind from the result of `TaskKind.to_dict`.

    Raises:
        ValueError: an unknown kind, an unknown setting, or a value that the kind does not allow.
    """
    from tss.tasks import KINDS  # imported late: the kinds import this module for their base class

    rest = dict(settings)
    name = rest.pop("kind", None)
    if name not in KINDS:
        raise ValueError(f"unknown kind of task {name!r}; there are: {', '.join(KINDS)}")
    known = {field.name for field in fields(KINDS[name])}  # type: ignore[arg-type]
    if unknown := sorted(set(rest) - known):
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has: {', '.join(sorted(known))}")
    return KINDS[name](**rest)


def check_choice(owner: str, key: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError naming the setting, its value and what is allowed, unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{owner}: {key}={value!r} is not one of {', '.join(allowed)}")


def check_labels(owner: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return labels as a tuple; raise ValueError unless there is at least one and all are strings and distinct."""
    if isinstance(labels, set | frozenset):
        raise ValueError(
            f"{owner}: labels are a set, whose order differs from process to process, and the order decides which "
            "output stands for which label: give sorted(labels)"
        )
    listed = isinstance(labels, Iterable) and not isinstance(labels, str)
    labels = tuple(labels) if listed else labels
    if not listed or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{owner}: labels must be a list of strings, not {labels!r}")
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"{owner}: labels must be at least one and all different, not {list(labels)!r}")
    return tuple(map(str, labels))


def pad_rows(rows: Sequence[Sequence[int]], value: int, multiple: int = PAD_MULTIPLE) -> torch.Tensor:
    """Return rows of different lengths as an int64 tensor (rows, L), padded right; L is a multiple of `multiple`."""
    longest = max((len(row) for row in rows), default=0)
    width = max(multiple, -(-longest // multiple) * multiple)
    padded = [[*row, *[value] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)


def pad_inputs(encoded: Sequence[Encoded], pad_id: int, multiple: int = PAD_MULTIPLE) -> Batch:
    """Return input_ids, attention_mask (1 at real tokens) and token_type_ids if all rows have them, without labels."""
    batch = {
        "input_ids": pad_rows([row["input_ids"] for row in encoded], pad_id, multiple),
        "attention_mask": pad_rows([[1] * len(row["input_ids"]) for row in encoded], 0, multiple),
    }
    if all("token_type_ids" in row for row in encoded):
        batch["token_type_ids"] = pad_rows([row["token_type_ids"] for row in encoded], 0, multiple)
    return batch


def without_labels(batch: Mapping[str, torch.Tensor]) -> Batch:
    """Return the model inputs of a batch."""
    return {key: value for key, value in batch.items() if key != "labels"}


def model_inputs(encoding: Mapping[str, list[list[int]]]) -> list[Encoded]:
    """Split a batched tokenizer output into one dict per row, with the keys that `pad_inputs` uses."""
    keys = [key for key in ("input_ids", "token_type_ids") if key in encoding]
    return [dict(zip(keys, row, strict=True)) for row in zip(*(encoding[key] for key in keys), strict=True)]


def all_labelled(encoded: Sequence[Encoded]) -> bool:
    """Return True if all rows have labels and False if none has; raise ValueError for a mixture."""
    labelled = sum("labels" in row for row in encoded)
    if labelled not in (0, len(encoded)):
        raise ValueError(f"{labelled} of {len(encoded)} rows have labels: a batch has them in all rows or in none")
    return labelled > 0


def mean_loss(logits: torch.Tensor, labels: torch.Tensor, items: Items = None) -> torch.Tensor:
    """Return the float32 cross-entropy averaged over labels that are not -100; 0 (with a gradient) if all are -100.

    Args:
        logits: (..., classes), any floating dtype.
        labels: (...), int64.
        items: number of labels to average over, if gradients of several batches are accumulated to one mean.
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1).to(logits.device)
    total = nn.functional.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")
    if items is None:
        return total / (targets != IGNORED).sum().clamp(min=1)
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        own = int((targets != IGNORED).sum())
        if items < own:
            raise ValueError(
                f"num_items_in_batch is {float(items):g}, less than the {own} labels of this batch alone: it is the "
                "number of labels, not of rows; create a Trainer after train_task, since it counts labels as the task "
                "needs that is active then"
            )
    return total / items


def check_targets(labels: Any, shape: Sequence[int | str], classes: int, owner: str) -> torch.Tensor:
    """Check that labels can be used for a loss and return them as int64; under torch.compile, return them unchanged.

    Values are checked on the CPU only: on other devices the check would have to wait for the device.

    Args:
        labels: the caller's labels.
        shape: required shape, one label for each row of logits, with a name for a size that is unknown (for messages);
            an additional last dimension of 1 is dropped.
        classes: number of logits.
        owner: owner of the labels, for messages.

    Raises:
        TypeError: not a tensor, or not of an integer dtype.
        ValueError: another shape, or a label that is neither -100 nor in [0, classes).
    """
    if torch.compiler.is_compiling():  # eager calls check this
        return labels
    expected = f"{owner} needs labels of shape {tuple(shape)}, int64"
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"{expected}, got a {type(labels).__name__}: make them a tensor with torch.as_tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"{expected}, got {labels.dtype}: give the index of each label, not a score; convert with .long()"
        )
    if labels.shape == (*shape, 1):
        labels = labels.squeeze(-1)
    if labels.shape != tuple(shape):
        raise ValueError(f"{expected}, got {tuple(labels.shape)}: give one per position, {IGNORED} where there is none")
    if labels.device.type == "cpu" and labels.numel():
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
        if len(wrong):
            raise ValueError(
                f"{owner} has {classes} classes, so labels are 0 to {classes - 1}, or {IGNORED} where there is none; "
                f"got {int(wrong[0])}"
            )
    return labels.long()
