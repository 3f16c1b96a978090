"""How an attached model answers a call: which task, whose head, and what a batch of mixed tasks gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from tss.adapters.model_class import check_unchanged
from tss.errors import TssError

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle


class Answering:
    """The part of the handle that a model's forward and generate call."""

    _inside = False

    @contextmanager
    def running(self: TssHandle, task: str | Sequence[str] | None) -> Iterator[None]:
        """One task, one task per row, or the active task (None)."""
        if task is None:
            yield
        elif isinstance(task, str):
            with self.using(task):
                yield
        else:
            with self.rows(task):
                yield

    def answer(self: TssHandle, original: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """The active task's answer: its head on the backbone's features, or the model's own forward."""
        record = None if self.active is None else self.record(self.active)
        # A head asks the model for features, which may come back here when the model is its own base model.
        if self._inside or record is None or record.head is None or self._has_rows():
            output = original(self.model, **inputs)
        else:
            self._inside = True
            try:
                labels = inputs.pop("labels", None)
                output = record.kind.compute(self.model, record.head, inputs, labels)
            finally:
                self._inside = False
        check_unchanged(self.model, self, output)
        return output

    def answer_for(
        self: TssHandle, task: str | Sequence[str], original: Callable[..., Any], inputs: dict[str, Any]
    ) -> Any:
        """The answer for one named task, or for a batch whose rows belong to different tasks.

        Rows that all use the language-model head run in one pass. Rows with heads of their own run task by task, and
        `logits` is then a list with one tensor per row, since heads differ in width.
        """
        if isinstance(task, str):
            with self.using(task):
                return self.answer(original, inputs)
        headed = {name: self.record(name).head is not None for name in task}
        if not any(headed.values()):
            with self.rows(task):
                return self.answer(original, inputs)
        if not all(headed.values()):
            kinds = ", ".join(f"{name} ({self.record(name).kind.kind})" for name in headed)
            raise TssError(f"tasks with and without a head cannot share one forward pass: {kinds}; split the batch")
        return self._answer_by_task(list(task), original, inputs)

    def _answer_by_task(
        self: TssHandle, names: list[str], original: Callable[..., Any], inputs: Mapping[str, Any]
    ) -> SequenceClassifierOutput:
        if inputs.get("labels") is not None:
            raise TssError("a batch of mixed tasks takes no labels: train on one task at a time")
        logits: list[Any] = [None] * len(names)
        for name in dict.fromkeys(names):
            index = [i for i, other in enumerate(names) if other == name]
            chosen = {
                key: value[index] if isinstance(value, torch.Tensor) and value.shape[:1] == (len(names),) else value
                for key, value in inputs.items()
            }
            with self.using(name):
                answer = self.answer(original, chosen).logits
            for i, row in zip(index, answer, strict=True):
                logits[i] = row
        return SequenceClassifierOutput(logits=logits)  # type: ignore[arg-type]

    def _has_rows(self: TssHandle) -> bool:
        return next(iter(self.bank.sites.values())).rows is not None
