"""`model.tss`: the tasks of one model, their life cycle, and which of them runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tss.adapters import answering, importance, state, table
from tss.adapters.bank import Bank, Rows, Selection, load_exactly
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.float32 import TaskHeads
from tss.adapters.lifecycle import Lifecycle
from tss.adapters.prefix import Prefix, find_prefix, given
from tss.adapters.record import State
from tss.adapters.storage import digest
from tss.errors import StateError
from tss.tasks.base import TaskKind
from tss_kernels import GatedAdapterLinear, SoftMaskedAdamW


class TssHandle(Lifecycle):
    """The tasks of a model that `tss.attach` was called on; `print` shows them as a table.

    Active and trainable are separate: a sealed task can run while another is being learned.

    Attributes:
        model, config, options: what it is attached to, with which adapters, and how tasks are learned.
        banks: site -> its adapter for all tasks.
        heads: the heads of all tasks.
        trainable: the task that is being learned, or None.
        tokenizer: set it to seal tasks from raw examples.
    """

    def __init__(
        self, model: Any, config: AdapterConfig, options: TssOptions, banks: dict[str, Bank], heads: TaskHeads
    ) -> None:
        super().__init__(model, config, options, banks, heads)
        self.tokenizer: Any = None
        self.inside = False  # a head is being computed: the model's forward pass is the original one
        self._required_grad = {name: p.requires_grad for name, p in model.named_parameters()}

    @property
    def active(self) -> str | None:
        """The task that runs, or None: then the adapters are bypassed, or rows have tasks of their own."""
        return self.selection if isinstance(self.selection, str) else None

    @property
    def selected(self) -> tuple[str, ...]:
        """All tasks that run now, each once: none, one, or those of the rows."""
        if isinstance(self.selection, Rows):
            return tuple(dict.fromkeys(self.selection.names))
        return () if self.selection is None else (self.selection,)

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> `GatedAdapterLinear`, or `nn.Linear` in plain adapters."""
        return {name: layer for bank in self.banks.values() for name, layer in bank.layers.items()}

    def __str__(self) -> str:
        return table.render(self)

    # The life of a task: new -> learning -> sealed.

    def add_task(self, name: str, kind: TaskKind) -> None:
        """Make a task known, with a head of its own if its kind has one; its state is new.

        Raises:
            StateError: the name is taken.
            ValueError: the model cannot learn tasks of this kind.
        """
        self.check_free(name)
        kind.check_model(self.model)
        self.admit(name, kind, self.make_head(name, kind))

    def train_task(self, name: str) -> None:
        """Begin to learn a new task: it becomes active, and only its scores and its head require gradients.

        Its scores start as the first draw, then as a copy of the last task's or (`score_copy=False`) as a draw of its
        own. Accumulated importance masks them as `options.soft_mask` says. A task being learned just goes on.

        Raises:
            StateError: no such task, a sealed one, or another task is being learned.
        """
        record = self.record(name)
        if record.state is State.SEALED:
            raise StateError(f"task {name!r} is sealed and can never change; add a task of another name to learn on")
        if self.trainable not in (None, name):
            raise StateError(f"task {self.trainable!r} is being learned; seal it before training {name!r}")
        if record.state is State.NEW:
            sealed = any(known.state is State.SEALED for known in self.tasks.values())
            self.begin(name, fresh=sealed and not self.options.score_copy)
        self.use(name)

    def seal_task(self, data: Any = None, *, name: str | None = None, batch_size: int = 32) -> None:
        """End the task being learned: importance, then its gates packed to 1 bit; it can never change again.

        Args:
            data: its training data, passed over once in evaluation mode: batches with labels (dicts of tensors, such
                as a DataLoader gives), or single examples, encoded (input_ids, labels) or, if `tokenizer` is set, raw.
                None, or `soft_mask="none"`: no importance is taken, so nothing holds later tasks back from its scores.
            name: the task, to be sure; it must be the one being learned.
            batch_size: for single examples.

        Raises:
            StateError: no task, or another one, is being learned; or a gradient is not finite. It then goes on.
            ValueError: data without a batch or without labels.
        """
        if self.trainable is None or name not in (None, self.trainable):
            raise StateError(f"cannot seal {name or 'a task'}: the task being learned is {self.trainable or 'none'}")
        if data is not None and self.options.soft_mask != "none":
            self._take_importance(data, batch_size)
        self.end()

    def _take_importance(self, data: Any, batch_size: int) -> None:
        if not self.config.gated:
            raise ValueError("seal_task: plain adapters have no importance; call it without data")
        assert self.trainable is not None
        layers: dict[str, GatedAdapterLinear] = self.layers
        losses = importance.losses_of(self, self.record(self.trainable).kind, data, batch_size)
        with self.using(self.trainable), importance.evaluation_mode(self.model):
            raw = importance.raw_importance(layers, losses, self.options.importance_of)
        importance.accumulate(layers, raw, self.options.importance_per)

    # Which task runs.

    def use(self, name: str | None) -> None:
        """Make a task active; None bypasses the adapters, so that the model is the original one.

        Raises:
            StateError: no such task, or one that was never trained.
        """
        self.select(None if name is None else self._runnable(name))

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """`use(name)` for a while; what was active before is active again after."""
        with self._selecting(None if name is None else self._runnable(name)):
            yield

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """For a while, row i of every batch runs as task names[i]; beams, which repeat rows in order, are understood.

        Raises:
            StateError: no such task, or one that was never trained.
            ValueError: no names; later, a batch that does not fit them.
        """
        if isinstance(names, str) or not names:
            raise ValueError(f"rows: expected one task name per row, got {names!r}")
        with self._selecting(Rows(tuple(self._runnable(name) for name in names))):
            yield

    @contextmanager
    def selecting(self, task: str | Sequence[str] | None) -> Iterator[None]:
        """What `task=` means in a call: one task for all rows, one per row, or (None) what is active."""
        if task is None:
            yield
            return
        with self.using(task) if isinstance(task, str) else self.rows(task):
            yield

    @contextmanager
    def recalling(self, selection: Selection) -> Iterator[None]:
        """Run a layer again as in its forward pass, whatever is active by now."""
        for bank in self.banks.values():
            bank.recalled = True
        try:
            with self._selecting(selection):
                yield
        finally:
            for bank in self.banks.values():
                bank.recalled = False

    @contextmanager
    def _selecting(self, selection: Selection) -> Iterator[None]:
        before = self.selection
        self.select(selection)
        try:
            yield
        finally:
            self.select(before)

    def _runnable(self, name: str) -> str:
        if self.record(name).state is State.NEW:
            raise StateError(f"task {name!r} is new and has no gates yet; call train_task({name!r}) first")
        return name

    # Training.

    @cached_property
    def prefix(self) -> Prefix | None:
        """What lies below the first adapter; None where nothing does that could be skipped."""
        return find_prefix(self)

    def loss(self, *, below: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """The loss of the active task: what `model(**inputs).loss` is, but without logits that no label asks for.

        Args:
            below: what `prefix.compute` gave for these inputs; what it holds is then not computed again.
            inputs: of the model's forward pass, with labels; ValueError without.
        """
        with given(self.model, below):
            return answering.loss(self.model, inputs)

    def optimizer(
        self, *, score_lr: float, head_lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> SoftMaskedAdamW:
        """A fresh optimizer with groups "scores" and "head", without weight decay, which would move masked scores.

        With `soft_mask="update"` it applies the mask; with "gradient" the layers do in the backward pass, and it does
        not. So any optimizer will do for "gradient", and this one is needed for "update".

        Raises:
            StateError: no task is being learned.
        """
        if self.trainable is None:
            raise StateError("no task is being learned: call train_task(name) before making its optimizer")
        rates = {"scores": score_lr, "head": head_lr}
        named = self.trainable_parameters().items()
        groups = [{"name": name, "params": group, "lr": rates[name]} for name, group in named if group]
        masks: dict[torch.Tensor, torch.Tensor] = {}
        if self.options.soft_mask == "update":
            masks = {x.scores: x.importance for x in self._gated().values() if x.importance is not None}
        self.optimizer_masks = True
        return SoftMaskedAdamW(groups, betas=betas, eps=eps, weight_decay=0.0, site="update", importance=masks)

    # What the gates look like.

    def packed(self) -> dict[str, torch.Tensor]:
        """The gates that run now, of the live scores if none runs: uint8 by layer; empty for plain adapters."""
        return {name: layer.pack().clone() for name, layer in self._gated().items()}

    def density(self) -> dict[str, float]:
        """The share of those gates that is on, by layer; empty for plain adapters."""
        return {name: layer.density() for name, layer in self._gated().items()}

    def flipped(self, since: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The share of gates that differ from `since`, which `packed` gave earlier, by layer."""
        return table.flipped(since, self.packed(), {name: layer.weight.numel() for name, layer in self.layers.items()})

    def _gated(self) -> dict[str, GatedAdapterLinear]:
        return self.layers if self.config.gated else {}

    # State. The tensors are the handle's own, as in `state_dict`: clone what has to stay as it is.

    def learning_state(self) -> state.Tensors:
        """What the task being learned has trained: scores (plain adapters: weights) and head."""
        return state.learning_state(self)

    def load_learning_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `learning_state` gave; raises StateError if it does not fit."""
        load_exactly(state.learning_state(self), tensors, f"learning state of {self.trainable}")

    def shared_state(self) -> state.Tensors:
        """What is handed from task to task: last scores and importance; plain adapters: their weights."""
        return {key: tensor for bank in self.banks.values() for key, tensor in bank.shared().items()}

    def load_shared_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `shared_state` gave; raises StateError if it does not fit."""
        for bank in self.banks.values():
            bank.load_shared(tensors)

    def task_state(self, name: str) -> tuple[state.Tensors, dict[str, Any]]:
        """A task's own tensors ("gates.<layer>" uint8 once sealed, "head.<parameter>") and JSON-able metadata."""
        return state.task_state(self, name)

    def load_task_state(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        """Add the task that `task_state` gave.

        Raises:
            StateError: there is a task of that name; or the tensors or the metadata do not fit.
        """
        self.check_free(name)
        state.load_task_state(self, name, tensors, metadata)

    def fingerprint(self, name: str) -> str:
        """sha256 over the gates and the head of a sealed task, as they are now.

        Raises:
            StateError: no such task, or it is not sealed.
        """
        if self.record(name).state is not State.SEALED:
            raise StateError(f"task {name!r} is {self.record(name).state}: only what is sealed has a fingerprint")
        return digest(state.sealed_tensors(self, name))

    def frozen_fingerprint(self) -> str:
        """sha256 over what never changes: the backbone's parameters and buffers, and the adapters' frozen tensors."""
        return state.frozen_fingerprint(self)

    def bytes_per_task(self, name: str) -> dict[str, int]:
        """Bytes kept for a task: {"gates", "head", "total"}."""
        gates, total = sum(bank.gate_bytes() for bank in self.banks.values()), self.record(name).bytes
        return {"gates": gates, "head": total - gates, "total": total}

    def save(self, directory: str | Path) -> None:
        """Write adapters, importance and all tasks, never the backbone; `tss.load` reads them."""
        from tss.adapters.persist import save

        save(self, Path(directory))

    def detach(self) -> Any:
        """Take everything off the model and return it as it was before `attach`, bit for bit."""
        from tss.adapters.attaching import remove

        model = self.model
        remove(self)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._required_grad.get(name, parameter.requires_grad))
        self._model, self.trainable, self._records = None, None, {}
        return model
