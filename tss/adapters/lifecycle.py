"""The steps of a task's life, new -> learning -> sealed, that learning and loading from disk share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from tss.adapters import state
from tss.adapters.bank import Bank, Selection
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.float32 import TaskHeads
from tss.adapters.record import State, TaskRecord
from tss.adapters.sites import model_width
from tss.adapters.storage import digest
from tss.errors import StateError
from tss.seeding import tensor_stream
from tss.tasks.base import TaskKind

# Where configurations keep the dropout of a head, the most specific name first.
DROPOUTS = ("classifier_dropout", "dropout", "dropout_rate", "hidden_dropout_prob")


class Lifecycle:
    """Records, heads and adapters of a model's tasks, and the transitions between their states.

    Attributes:
        model, config, options: what it is attached to, with which adapters, and how tasks are learned.
        banks: site -> its adapter for all tasks.
        heads: the heads of all tasks.
        trainable: the task that is being learned, or None.
        selection: the task that runs, the tasks of the rows, or None.
    """

    def __init__(
        self, model: Any, config: AdapterConfig, options: TssOptions, banks: dict[str, Bank], heads: TaskHeads
    ) -> None:
        self._model, self.config, self.options = model, config, options
        self.banks, self.heads = banks, heads
        self.trainable: str | None = None
        self.selection: Selection = None
        self.optimizer_masks = False  # an optimizer that applies the soft mask was made for the task being learned
        self._records: dict[str, TaskRecord] = {}

    @property
    def tasks(self) -> Mapping[str, TaskRecord]:
        """Name -> record, in the order in which the tasks were added."""
        return MappingProxyType(self._records)

    @property
    def model(self) -> Any:
        """The model.

        Raises:
            StateError: it was detached.
        """
        if self._model is None:
            raise StateError("these adapters were taken off their model: call tss.attach(model) for new ones")
        return self._model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def record(self, name: str) -> TaskRecord:
        """The record of a task.

        Raises:
            StateError: there is none of that name; the message lists those that there are.
        """
        if name not in self._records:
            known = ", ".join(self._records) or "none yet, add one with add_task(name, kind)"
            raise StateError(f"there is no task {name!r}; the tasks are: {known}")
        return self._records[name]

    def check_free(self, name: str) -> None:
        """Raise StateError if there is a task of this name."""
        if name in self._records:
            raise StateError(f"task {name!r} exists already and is {self._records[name].state}; choose another name")

    def make_head(self, name: str, kind: TaskKind) -> nn.Module | None:
        """A task's head as it starts, from a random stream of its own; float32, frozen, on the model's device."""
        settings = (getattr(self.model.config, key, None) for key in DROPOUTS)
        dropout = next((float(x) for x in settings if x is not None), 0.0)
        # Layers draw from torch's global stream when they are made; nobody else's numbers may depend on that.
        with torch.random.fork_rng(devices=[]):
            width = model_width(self.model, f"of the head of {name}")
            head = kind.make_head(width, dropout, tensor_stream(self.config.seed, "head", name))
        return None if head is None else head.to(self.device).requires_grad_(False).train(self.model.training)

    def admit(self, name: str, kind: TaskKind, head: nn.Module | None) -> None:
        """Keep a new task and its head."""
        if head is not None:
            self.heads.put(name, head)
        gates = sum(bank.gate_bytes() for bank in self.banks.values())
        size = sum(t.numel() * t.element_size() for t in state.head_tensors(self, name).values())
        self._records[name] = TaskRecord(name, kind, State.NEW, gates + size)

    def begin(self, name: str, *, fresh: bool) -> None:
        """new -> learning, from a fresh draw of scores or from the scores as they are."""
        for bank in self.banks.values():
            bank.start(name, fresh=fresh, masked=self.options.soft_mask == "gradient")
        self.trainable, self.optimizer_masks = name, False
        self._records[name] = replace(self._records[name], state=State.LEARNING)
        self._require_grad(True)

    def end(self) -> None:
        """learning -> sealed."""
        assert self.trainable is not None
        self._require_grad(False)
        for bank in self.banks.values():
            bank.seal(self.trainable)
        name, self.trainable = self.trainable, None
        self.close(name)

    def close(self, name: str) -> None:
        """Record a task whose gates and head are final as sealed."""
        density, fingerprint = state.density(self, name), digest(state.sealed_tensors(self, name))
        self._records[name] = replace(self._records[name], state=State.SEALED, density=density, hash=fingerprint)
        self.select(self.selection)  # the task that runs may have been this one: from now on by its packed gates

    def select(self, selection: Selection) -> None:
        """Make every site run this task, these tasks by row, or none."""
        for bank in self.banks.values():
            bank.select(selection)
        self.selection = selection

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """What is being learned: "scores" (plain adapters: their weights) and "head"; empty lists if nothing is."""
        if self.trainable is None:
            return {"scores": [], "head": []}
        head = self.heads.of(self.trainable)
        return {
            "scores": [parameter for bank in self.banks.values() for parameter in bank.trained().values()],
            "head": [] if head is None else list(head.parameters()),
        }

    def _require_grad(self, flag: bool) -> None:
        for group in self.trainable_parameters().values():
            for parameter in group:
                parameter.requires_grad_(flag)
                parameter.grad = None
