"""What a kind of task is: how examples become tensors, how a head reads the backbone, how predictions are scored."""

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
PAD_MULTIPLE = 8  # tensor cores want lengths that are multiples of eight


class TaskKind(ABC):
    """A kind of task with its settings; instances are frozen, hashable and equal when their settings are."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def main_metric(self) -> str:
        """The entry of `score` that model selection and the continual metrics look at."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types, with "kind"; `kind_from_dict` is the inverse."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}  # type: ignore[call-overload]
        return {"kind": self.kind, **settings}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> TaskKind:
        """The same as `kind_from_dict`."""
        return kind_from_dict(settings)

    def encode(self, example: Example, tokenizer: Any, *, source_length: int, target_length: int) -> Encoded:
        """One example as token ids and labels; `encode_all` is the faster way to encode many."""
        return self.encode_all([example], tokenizer, source_length=source_length, target_length=target_length)[0]

    @abstractmethod
    def encode_all(
        self, examples: Sequence[Example], tokenizer: Any, *, source_length: int, target_length: int
    ) -> list[Encoded]:
        """Examples as "input_ids" (at most `source_length`) and, where the example has its answer, "labels".

        The tokenizer is called once for all examples. Examples without an answer (for prediction) need no field for it.
        """

    @abstractmethod
    def collate(self, encoded: Sequence[Encoded], *, pad_id: int, multiple: int = PAD_MULTIPLE) -> Batch:
        """One batch of int64 tensors, padded right: input_ids, attention_mask, labels if encoded.

        Args:
            encoded: the rows.
            pad_id: fills input_ids.
            multiple: every length becomes a multiple of it; 1 pads to the longest row and no further.
        """

    @abstractmethod
    def check_model(self, model: Any) -> None:
        """Raise ValueError, saying what is missing, unless a model of this architecture can learn this kind."""

    @abstractmethod
    def make_head(self, hidden_size: int, dropout: float, generator: torch.Generator | None = None) -> nn.Module | None:
        """The task's own float32 head, or None where the model's language-model head is used."""

    def for_model(self, model: Any) -> TaskKind:
        """This kind as a model of this architecture learns it.

        Raises:
            ValueError: it cannot; the message says what is missing.
        """
        self.check_model(model)
        return self

    def apply_head(self, tensors: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """What the head of these tensors gives in evaluation mode: a sealed task has no modules.

        Args:
            tensors: named as in the `state_dict` of what `make_head` gives.
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
        """Backbone, then head: a transformers output with `logits`, and `loss` (scalar) if labels are given.

        Args:
            model: the backbone.
            head: hidden states (..., H) -> logits, of kinds that have one.
            inputs: of the backbone's forward pass, without labels.
            labels: as the kind collates them.
            call: runs a part of the backbone with keyword arguments; None calls it.
            items: labels over which the loss is averaged, where they are more than this batch's.
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
        """The loss that `compute` gives (scalar), where nobody reads logits: kinds leave out what no label asks for."""
        return self.compute(model, head, inputs, labels, call=call).loss

    @abstractmethod
    def predict(
        self, model: nn.Module, batch: Batch, tokenizer: Any, *, examples: Sequence[Example] | None = None
    ) -> list[Any]:
        """Decoded predictions, one per row; `model(**inputs)` must answer for this task.

        Args:
            model: called without labels under `torch.no_grad()`; the caller has put it into eval mode.
            batch: from `collate`, on the model's device.
            tokenizer: the one that encoded the batch.
            examples: the rows' examples; where given, a kind may use them to complete what truncation cut off.
        """

    @abstractmethod
    def references(self, examples: Sequence[Example]) -> list[Any]:
        """The right answers, in the form in which `predict` gives its own."""

    @abstractmethod
    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """All metrics of this kind, each 0 to 100."""

    @abstractmethod
    def signature(self) -> str:
        """One line that says with which library, version and settings `score` computes."""


def kind_from_dict(settings: Mapping[str, Any]) -> TaskKind:
    """The kind that `TaskKind.to_dict` described.

    Raises:
        ValueError: an unknown kind, an unknown setting, or a value that the kind refuses.
    """
    from tss.tasks import KINDS  # the kinds derive from this module's class, so their table lies above it

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
    """Labels as a tuple; raises ValueError unless they are at least one, all strings, and different."""
    listed = isinstance(labels, Iterable) and not isinstance(labels, str)
    if not listed or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{owner}: labels must be a list of strings, not {labels!r}")
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"{owner}: labels must be at least one and all different, not {list(labels)!r}")
    return tuple(labels)


def pad_rows(rows: Sequence[Sequence[int]], value: int, multiple: int = PAD_MULTIPLE) -> torch.Tensor:
    """Rows of different lengths as one int64 tensor (rows, L), padded right; L is a multiple of `multiple`."""
    longest = max((len(row) for row in rows), default=0)
    width = max(multiple, -(-longest // multiple) * multiple)
    padded = [[*row, *[value] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)


def pad_inputs(encoded: Sequence[Encoded], pad_id: int, multiple: int = PAD_MULTIPLE) -> Batch:
    """input_ids, attention_mask (1 at real tokens) and token_type_ids where the tokenizer gave them; no labels."""
    batch = {
        "input_ids": pad_rows([row["input_ids"] for row in encoded], pad_id, multiple),
        "attention_mask": pad_rows([[1] * len(row["input_ids"]) for row in encoded], 0, multiple),
    }
    if all("token_type_ids" in row for row in encoded):
        batch["token_type_ids"] = pad_rows([row["token_type_ids"] for row in encoded], 0, multiple)
    return batch


def without_labels(batch: Mapping[str, torch.Tensor]) -> Batch:
    """The model inputs of a batch."""
    return {key: value for key, value in batch.items() if key != "labels"}


def model_inputs(encoding: Mapping[str, list[list[int]]]) -> list[Encoded]:
    """A batched tokenizer output as one dict per row, with what `pad_inputs` understands."""
    keys = [key for key in ("input_ids", "token_type_ids") if key in encoding]
    return [dict(zip(keys, row, strict=True)) for row in zip(*(encoding[key] for key in keys), strict=True)]


def all_labelled(encoded: Sequence[Encoded]) -> bool:
    """Whether every row carries its answer (True) or none does (False); a mixture raises ValueError."""
    labelled = sum("labels" in row for row in encoded)
    if labelled not in (0, len(encoded)):
        raise ValueError(f"{labelled} of {len(encoded)} rows have labels: a batch has them in all rows or in none")
    return labelled > 0


def mean_loss(logits: torch.Tensor, labels: torch.Tensor, items: Items = None) -> torch.Tensor:
    """Cross-entropy in float32, averaged over labels that are not -100; 0 (with a gradient) where all are -100.

    Args:
        logits: (..., classes), any floating dtype.
        labels: (...), int64.
        items: how many labels to average over, where gradients of several batches add up to one mean.
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1).to(logits.device)
    total = nn.functional.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")
    return total / ((targets != IGNORED).sum().clamp(min=1) if items is None else items)


def check_targets(labels: Any, shape: Sequence[int | str], classes: int, owner: str) -> torch.Tensor:
    """Labels as int64, if a loss can be computed of them; under the compiler as they are.

    Values are looked at on the CPU alone: elsewhere it would wait for the device.

    Args:
        labels: what a caller gave.
        shape: that they must have, one for each row of logits, a name where any size will do; a last dimension of 1 is
            dropped.
        classes: number of logits.
        owner: whose labels they are, for messages.

    Raises:
        TypeError: no tensor, or none of whole numbers.
        ValueError: another shape, or a label that is neither -100 nor in [0, classes).
    """
    if torch.compiler.is_compiling():  # eager calls have told
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
        raise ValueError(
            f"{expected}, got {tuple(labels.shape)}: give one for each place, {IGNORED} where there is none"
        )
    if labels.device.type == "cpu" and labels.numel():
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
        if len(wrong):
            raise ValueError(
                f"{owner} has {classes} classes, so labels are 0 to {classes - 1}, or {IGNORED} where there is none; "
                f"got {int(wrong[0])}"
            )
    return labels.long()
