"""`model.tss`: the tasks of one model, their life cycle, and which of them runs."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tss.adapters import importance, saving, table, task_forward
from tss.adapters.checkpointing import forget_calls
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.fingerprints import Fingerprints, differing
from tss.adapters.frozen_prefix import FrozenPrefix, find_prefix, given
from tss.adapters.learning import LearningTask, TasksLearned
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.sites import model_width
from tss.adapters.storage import Tensors, digest, load_exactly
from tss.adapters.task_call import NO_TASK, TaskCall, calling
from tss.adapters.task_store import SealedTask, State, TaskRecord, TaskStore
from tss.errors import StateError
from tss.io import sha256
from tss.seeding import tensor_stream
from tss.tasks.base import TaskKind, kind_from_dict
from tss_kernels import SoftMaskedAdamW, unpack_gates

# Where configurations keep the dropout of a head, the most specific name first.
DROPOUTS = ("classifier_dropout", "dropout", "dropout_rate", "hidden_dropout_prob")
Names = str | tuple[str, ...] | None
Task = str | Sequence[str] | TaskCall | None


class _Defaults(threading.local):
    def __init__(self) -> None:
        self.table: weakref.WeakKeyDictionary[TssHandle, Names] = weakref.WeakKeyDictionary()


_defaults = _Defaults()  # which task a handle's model runs on this thread where a call names none


class TssHandle:
    """The tasks of a model that `tss.attach` gave; `print` shows them as a table.

    Active and trainable are separate: a sealed task can run while another is being learned. Which task is active is
    each thread's own; a thread that never chose runs what is being learned.

    Attributes:
        model: the `TssModel`; backbone: what it was put around.
        config, options: which adapters, and how tasks are learned.
        adapters: site -> its adapter for all tasks.
        store: the tasks.
        tokenizer: set it to seal tasks from raw examples.
    """

    def __init__(
        self,
        model: Any,
        backbone: Any,
        config: AdapterConfig,
        options: TssOptions,
        adapters: Mapping[str, SiteAdapter],
        store: TaskStore,
        learning: TasksLearned,
    ) -> None:
        self._model, self._backbone, self.config, self.options = model, backbone, config, options
        self.adapters, self.store, self.tokenizer = dict(adapters), store, None
        self.optimizer_masks = False  # an optimizer that applies the soft mask was made for the task being learned
        self._learning, self._start = learning, Tensors()
        self._fingerprints = Fingerprints()
        self._required_grad = {name: p.requires_grad for name, p in backbone.named_parameters()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_default_here": _defaults.table.get(self, False)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        chosen = state.pop("_default_here")
        self.__dict__.update(state)
        if chosen is not False:  # a copy runs what its original runs on this thread
            _defaults.table[self] = chosen

    def __str__(self) -> str:
        return table.render(self.tasks, self.active)

    @property
    def model(self) -> Any:
        """The `TssModel`.

        Raises:
            StateError: it was detached.
        """
        self._check_attached()
        return self._model

    @property
    def backbone(self) -> Any:
        """What the model was put around.

        Raises:
            StateError: it was detached.
        """
        self._check_attached()
        return self._backbone

    @property
    def core(self) -> Any:
        """The transformers model in it."""
        return task_forward.core_of(self.backbone)

    @property
    def tasks(self) -> Mapping[str, TaskRecord]:
        """Name -> record, in the order in which the tasks were added."""
        return self.store.tasks

    @property
    def trainable(self) -> str | None:
        """The task that is being learned, or None."""
        return self.store.learning

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> `GatedAdapterLinear`, or `nn.Linear` in plain adapters."""
        return {name: layer for adapter in self.adapters.values() for name, layer in adapter.layers.items()}

    @property
    def head(self) -> nn.Module | None:
        """The head of the task being learned."""
        return None if self.trainable is None else self._learning.current.head

    # The life of a task: new -> learning -> sealed.

    def add_task(self, name: str, kind: TaskKind) -> None:
        """Make a task known; its state is new.

        Raises:
            StateError: the name is taken.
            ValueError: it is no name, or the model cannot learn tasks of this kind.
        """
        self.store.check_free(name)
        kind = kind.for_model(self.core)
        head = self._make_head(name, kind)
        self.store.add(name, kind, self._bytes_with(head))

    def train_task(self, name: str) -> None:
        """Begin to learn a new task: it becomes active, and only its scores and its head require gradients.

        Its scores start as the first draw, then as a copy of the last task's or (`score_copy=False`) as a draw of its
        own. Accumulated importance masks them as `options.soft_mask` says. A task being learned just goes on.

        Raises:
            StateError: no such task, a sealed one, or another task is being learned.
        """
        begins = self.store.record(name).state is State.NEW
        self.store.start(name)
        if begins:
            sealed = any(record.state is State.SEALED for record in self.tasks.values())
            self._begin(name, fresh=sealed and not self.options.score_copy)
        self.use(name)

    def seal_task(self, data: Any = None, *, name: str | None = None, batch_size: int = 32) -> None:
        """End the task being learned: importance, then its gates packed to 1 bit; it can never change again.

        In a distributed run every process calls this: importance is averaged over all of them.

        Args:
            data: its training data, passed over once in evaluation mode: batches with labels (dicts of tensors, such
                as a DataLoader gives), or single examples, encoded (input_ids, labels) or, if `tokenizer` is set, raw.
                None, with a warning, or `soft_mask="none"`: no importance is taken, so nothing holds later tasks back
                from its scores.
            name: the task, to be sure; it must be the one being learned.
            batch_size: for single examples.

        Raises:
            StateError: no task, or another one, is being learned; or scores, head or a gradient are not finite. It is
                then still being learned.
            ValueError: data without a batch or without labels.
        """
        task = self.trainable
        if task is None or name not in (None, task):
            raise StateError(f"cannot seal {name or 'a task'}: the task being learned is {task or 'none'}")
        self.check_finite()
        if self.options.soft_mask != "none":
            if data is not None:
                self._take_importance(task, data, batch_size)
            elif self.config.gated:
                warnings.warn(
                    f"task {task!r} is sealed without data, so no importance is taken and later tasks may change what "
                    "it relies on in the shared scores: give its training data, or TssOptions(soft_mask='none')",
                    stacklevel=2,
                )
        head = self.head
        gates = {layer: packed for adapter in self.adapters.values() for layer, packed in adapter.packed().items()}
        tensors = None if head is None else {k: v.detach().clone() for k, v in head.state_dict().items()}
        self._end()
        self.store.seal(task, SealedTask(gates, tensors), self._density_of(gates))

    def abandon(self) -> None:
        """Leave the task being learned: it is new again, and the scores are what they were before it.

        Raises:
            StateError: no task is being learned.
        """
        name, start = self.store.abandon(), self._start
        self._end()
        for adapter in self.adapters.values():
            adapter.load_shared(adapter.shared() | {key: start[key] for key in adapter.shared() if key in start})
        if _defaults.table.get(self) == name:
            _defaults.table[self] = None

    def delete_task(self, name: str) -> None:
        """Forget a task that is new or sealed. The importance that it added to the shared scores stays.

        Raises:
            StateError: no such task, or it is being learned.
        """
        self.store.delete(name)
        chosen = _defaults.table.get(self)
        if chosen == name or (isinstance(chosen, tuple) and name in chosen):
            _defaults.table[self] = None

    def rename_task(self, old: str, new: str) -> None:
        """Another name for a task that is new or sealed; what it answers stays the same.

        Raises:
            StateError: no such task, it is being learned, or the new name is taken.
            ValueError: the new name is none.
        """
        self.store.rename(old, new)
        if _defaults.table.get(self) == old:
            _defaults.table[self] = new

    def check_finite(self) -> None:
        """Raise StateError if scores or head of the task being learned are not finite: a gate of NaN reads as off."""
        for name, tensor in (self.learning_state() if self.trainable is not None else {}).items():
            if not tensor.isfinite().all():
                raise StateError(
                    f"task {self.trainable!r}: {name} holds {int((~tensor.isfinite()).sum())} values that are not "
                    "finite; it is still being learned: restore an earlier state, or leave it with abandon(), and "
                    "lower its learning rates"
                )

    # Which task runs.

    @property
    def chosen(self) -> Names:
        """What runs on this thread where a call names no task: a name, one per row, or None."""
        return _defaults.table.get(self, self.trainable)

    @property
    def active(self) -> str | None:
        """The task that runs, or None: then the adapters are bypassed, or rows have tasks of their own."""
        chosen = self.chosen
        return chosen if isinstance(chosen, str) else None

    @property
    def selected(self) -> tuple[str, ...]:
        """All tasks that run now, each once: none, one, or those of the rows."""
        chosen = self.chosen
        return () if chosen is None else (chosen,) if isinstance(chosen, str) else tuple(dict.fromkeys(chosen))

    def use(self, name: str | None) -> None:
        """Make a task active on this thread; None bypasses the adapters, so that the model is the original one.

        Raises:
            StateError: no such task, or one that was never trained.
        """
        _defaults.table[self] = None if name is None else self._runnable(name)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """`use(name)` for a while; what was active before is active again after."""
        with self._choosing(None if name is None else self._runnable(name)):
            yield

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """For a while, row i of every batch runs as task names[i].

        Raises:
            StateError: no such task, or one that was never trained.
            ValueError: no names; later, a batch that does not fit them.
        """
        with self._choosing(self._checked_rows(names)):
            yield

    def resolve(self, task: Task) -> TaskCall:
        """What `task=` means in a call: one task for all rows, one per row, or (None) what is active.

        Raises:
            StateError: no such task, or one that was never trained.
            ValueError: no names.
        """
        if isinstance(task, TaskCall):
            return task
        chosen = self.chosen if task is None else task
        if chosen is None:
            return NO_TASK
        if isinstance(chosen, str):
            return self._call_of(chosen)
        names = self._checked_rows(chosen)
        rows = [(self._call_of(name), [i for i, n in enumerate(names) if n == name]) for name in dict.fromkeys(names)]
        first = rows[0][0]
        return TaskCall(self.store, names, first.kind, None, first.head, rows)

    def _call_of(self, name: str) -> TaskCall:
        record = self.store.record(self._runnable(name))
        if record.state is State.LEARNING:
            return TaskCall(self.store, (name,), record.kind, None, self._learning.current.head)
        head = self.store.sealed(name).head
        return TaskCall(self.store, (name,), record.kind, self.store.site_gates(name), head)

    def _runnable(self, name: str) -> str:
        self._check_attached()
        if self.store.record(name).state is State.NEW:
            raise StateError(f"task {name!r} is new and has no gates yet; call train_task({name!r}) first")
        return name

    def _checked_rows(self, names: Sequence[str]) -> tuple[str, ...]:
        if isinstance(names, str) or not len(names):
            raise ValueError(f"rows: expected one task name per row, got {names!r}")
        return tuple(self._runnable(name) for name in names)

    @contextmanager
    def _choosing(self, chosen: Names) -> Iterator[None]:
        own, before = self in _defaults.table, _defaults.table.get(self)
        _defaults.table[self] = chosen
        try:
            yield
        finally:
            if own:
                _defaults.table[self] = before
            else:
                _defaults.table.pop(self, None)

    # Training.

    @cached_property
    def prefix(self) -> FrozenPrefix | None:
        """What lies below the first adapter; None where nothing does that could be skipped."""
        return find_prefix(self.core, self.adapters)

    def loss(self, *, below: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """The loss of the active task: what `model(**inputs).loss` is, but without logits that no label asks for.

        Args:
            below: what `prefix.compute` gave for these inputs; what it holds is then not computed again.
            inputs: of the model's forward pass, with labels; ValueError without.
        """
        if inputs.get("labels") is None:
            raise ValueError(f"a loss needs labels, got only {', '.join(inputs) or 'nothing'}")
        call = self.resolve(None)
        with given(self.prefix if below is not None else None, below):
            if not call.active or call.rows is not None:
                return self.model(**inputs).loss
            self.check_soft_mask(call)
            with calling(call):
                return task_forward.loss(self.backbone, call, inputs, inputs.pop("labels"))

    def check_soft_mask(self, call: TaskCall) -> None:
        """Raise StateError if a training step goes unmasked: `soft_mask="update"` without the handle's optimizer."""
        applied = self.options.soft_mask != "update" or self.optimizer_masks or call.names != (self.trainable,)
        if applied or not self.model.training or not torch.is_grad_enabled():
            return
        if any(getattr(layer, "importance", None) is not None for layer in self.layers.values()):
            raise StateError(
                'soft_mask="update" is applied by the optimizer: make it with model.tss.optimizer(score_lr=..., '
                'head_lr=...) after train_task (for Trainer: optimizers=(optimizer, None)), or use soft_mask="gradient"'
            )

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """What is being learned: "scores" (plain adapters: their weights) and "head"; empty lists if nothing is."""
        if self.trainable is None:
            return {"scores": [], "head": []}
        scores = [parameter for adapter in self.adapters.values() for parameter in adapter.trained().values()]
        return {"scores": scores, "head": [] if self.head is None else list(self.head.parameters())}

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are being learned, in the form that PEFT uses."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        every = sum(p.numel() for p in self.model.parameters())
        print(f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}")

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
        if self.options.soft_mask == "update" and self.config.gated:
            masks = {x.scores: x.importance for x in self.layers.values() if x.importance is not None}
        self.optimizer_masks = True
        return SoftMaskedAdamW(groups, betas=betas, eps=eps, weight_decay=0.0, site="update", importance=masks)

    # What the gates look like.

    def packed(self) -> Tensors:
        """The gates that run now, of the live scores if none runs: uint8 by layer; empty for plain adapters."""
        if self.active is not None and self.tasks[self.active].state is State.SEALED:
            return {name: packed.clone() for name, packed in self.store.sealed(self.active).gates.items()}
        return {name: packed for adapter in self.adapters.values() for name, packed in adapter.packed().items()}

    def density(self) -> dict[str, float]:
        """The share of those gates that is on, by layer; empty for plain adapters."""
        return {name: self._ones(name, packed) / self._size(name) for name, packed in self.packed().items()}

    def flipped(self, since: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The share of gates that differ from `since`, which `packed` gave earlier, by layer."""
        return table.flipped(since, self.packed(), {name: self._size(name) for name in self.layers})

    # State. The tensors are the handle's own, as in `state_dict`: clone what has to stay as it is.

    def learning_state(self) -> Tensors:
        """What the task being learned has trained: scores (plain adapters: weights) and head."""
        if self.trainable is None:
            raise StateError("no task is being learned: call train_task(name) first")
        trained = {key: p.detach() for adapter in self.adapters.values() for key, p in adapter.trained().items()}
        return trained | _named_head(self.head)

    def load_learning_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `learning_state` gave; raises StateError if it does not fit."""
        load_exactly(self.learning_state(), tensors, f"learning state of {self.trainable}")

    def shared_state(self) -> Tensors:
        """What is handed from task to task: last scores and importance; plain adapters: their weights."""
        return {key: tensor for adapter in self.adapters.values() for key, tensor in adapter.shared().items()}

    def load_shared_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `shared_state` gave; raises StateError if it does not fit."""
        for adapter in self.adapters.values():
            adapter.load_shared(tensors)

    def task_state(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """A task's own tensors ("gates.<layer>" uint8 once sealed, "head.<parameter>") and JSON-able metadata."""
        record, tensors = self.store.record(name), Tensors()
        if record.state is State.SEALED:
            self.store.verify(name)
            tensors = self.store.sealed(name).tensors()
        if record.state is State.LEARNING:
            self.check_finite()
            tensors = _named_head(self.head) | {f"start.{key}": tensor for key, tensor in self._start.items()}
        about = {
            "name": name, "kind": record.kind.to_dict(), "state": str(record.state), "density": record.density,
            "hash": record.hash, "bytes": self.bytes_per_task(name),
        }  # fmt: skip
        return tensors, about

    def load_task_state(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        """Add the task that `task_state` gave; a failure adds nothing.

        Raises:
            StateError: there is a task of that name; or the tensors or the metadata do not fit.
        """
        self.store.check_free(name)
        try:
            kind, state = kind_from_dict(metadata["kind"]), State(metadata["state"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"task {name!r}: its metadata does not describe a task ({error!r})") from error
        if state is State.LEARNING and self.trainable is not None:
            raise StateError(f"task {name!r} is being learned, but so is {self.trainable!r}; seal that one first")
        head = self._make_head(name, kind)
        if head is not None and state is not State.NEW:
            load_exactly({f"head.{k}": v for k, v in head.state_dict().items()}, tensors, f"task {name!r}")
        value = None
        if state is State.SEALED:
            values = None if head is None else {k: v.detach().clone() for k, v in head.state_dict().items()}
            value = SealedTask(self._fitting_gates(name, tensors), values)
            if metadata.get("hash") not in (None, digest(value.tensors())):
                raise StateError(f"task {name!r}: gates and head are not those that were sealed; restore them")
        self.store.add(name, kind, self._bytes_with(head))
        if value is not None:
            self.store.seal(name, value, self._density_of(value.gates))
        if state is State.LEARNING:
            self.store.start(name)
            self._begin(name, fresh=False, head=head)
            self._start = {k.removeprefix("start."): v for k, v in tensors.items() if k.startswith("start.")}

    def fingerprint(self, name: str) -> str:
        """sha256 over the gates and the head of a sealed task, as they are now.

        Raises:
            StateError: no such task, or it is not sealed.
        """
        return digest(self.store.sealed(name).tensors())

    def frozen_fingerprint(self) -> str:
        """sha256 over what never changes, read anew: all values of the backbone, and the adapters' frozen tensors."""
        values = self._fingerprints.of(self.core, fresh=True)
        own = [f"{name} {sums[str(dtype)]}" for name, sums in values.items() for dtype in [next(iter(sums))]]
        return sha256("\n".join([*own, digest(self._frozen())]))

    def verify(self) -> None:
        """Raise ForgettingError if the tensors of a sealed task are not what they were when it was sealed."""
        for name, record in self.tasks.items():
            if record.state is State.SEALED:
                self.store.verify(name)

    def bytes_per_task(self, name: str) -> dict[str, int]:
        """Bytes kept for a task: {"gates", "head", "total"}."""
        gates, total = self._gate_bytes(), self.store.record(name).bytes
        return {"gates": gates, "head": total - gates, "total": total}

    # On disk.

    def save(self, directory: str | Path, tasks: Sequence[str] | None = None) -> None:
        """Write adapters, importance and all tasks, or those named, never the backbone; `tss.load` reads them.

        A folder that holds a save changes as one: whatever goes wrong, it then holds the old or the new one.

        Raises:
            StateError: no such task, or values that are not finite.
            ForgettingError: the tensors of a sealed task are not what they were.
        """
        saving.save(Path(directory), self.saved(tasks))

    def saved(self, tasks: Sequence[str] | None = None, extra: Tensors | None = None) -> saving.Saved:
        """What `save` writes."""
        names = list(self.tasks) if tasks is None else [self.store.record(name).name for name in tasks]
        states = [self.task_state(name) for name in names]
        name = getattr(self.core.config, "_name_or_path", "")
        backbone = self.geometry() | {"checksums": self._fingerprints.of(self.core), "name": name}
        return saving.Saved(
            asdict(self.config), asdict(self.options), backbone, self._frozen(), self.shared_state(), states,
            extra or {},
        )  # fmt: skip

    def restore(self, saved: saving.Saved, origin: str) -> None:
        """Add the tasks of `saved`; if there are none here yet, take over scores and importance too.

        Args:
            saved: of a model with the same settings.
            origin: its folder, for messages.

        Raises:
            StateError: another backbone or other adapters, or names that are taken; nothing is added then.
        """
        self._check_backbone(saved.backbone, origin)
        here = self._frozen()
        load_exactly({name: tensor.clone() for name, tensor in here.items()}, saved.frozen, origin)
        if off := [name for name, tensor in here.items() if not torch.equal(saved.frozen[name].to(tensor), tensor)]:
            raise StateError(f"{origin}: the frozen adapter weights {off[0]} differ from those here: use the same seed")
        for _, about in saved.tasks:
            self.store.check_free(about["name"])
        first, added = not self.tasks, []
        try:
            for tensors, about in saved.tasks:
                self.load_task_state(about["name"], tensors, about)
                added.append(about["name"])
            takes_scores = first or any(about["state"] == State.LEARNING for _, about in saved.tasks)
            self.load_shared_state(saved.shared if first else self._merged(saved.shared, takes_scores))
        except Exception:
            for name in added:
                if name == self.trainable:
                    self._end()
                    self.store.abandon()
                self.store.delete(name)
            raise

    def geometry(self) -> dict[str, Any]:
        """What a backbone must share with the one that tasks were learned on, besides every value."""
        shapes = [f"{name} {tuple(p.shape)}" for name, p in sorted(self.core.named_parameters())]
        return {
            "class": type(self.core).__name__,
            "parameters": len(shapes),
            "shapes_sha256": sha256("\n".join(shapes)),
            "sites": {site: adapter.width for site, adapter in self.adapters.items()},
        }

    def detach(self) -> Any:
        """Take everything off the backbone and return it as it was before `attach`, bit for bit."""
        backbone, core = self.backbone, self.core
        forget_calls(core)
        for site, adapter in self.adapters.items():
            hooks = core.get_submodule(site)._forward_hooks
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is adapter]:
                del hooks[key]
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(self._required_grad.get(name, parameter.requires_grad))
        self._model, self._backbone, self.store = None, None, TaskStore()
        _defaults.table.pop(self, None)
        return backbone

    # Steps that several of these share.

    def _check_attached(self) -> None:
        if self._backbone is None:
            raise StateError("these adapters were taken off their model: call tss.attach(model) for new ones")

    def _begin(self, name: str, *, fresh: bool, head: nn.Module | None = None) -> None:
        self._start = {key: tensor.clone() for key, tensor in self.shared_state().items() if "importance." not in key}
        for adapter in self.adapters.values():
            adapter.start(name, fresh=fresh, masked=self.options.soft_mask == "gradient")
        head = head if head is not None else self._make_head(name, self.store.record(name).kind)
        self._learning.put(name, LearningTask(head), self._device())
        self.optimizer_masks = False
        self._require_grad(True)

    def _end(self) -> None:
        self._learning.clear_with(self._require_grad)
        self._start = Tensors()

    def _require_grad(self, flag: bool) -> None:
        trained = [parameter for adapter in self.adapters.values() for parameter in adapter.trained().values()]
        for parameter in (*trained, *self._learning.parameters()):
            parameter.requires_grad_(flag)
            parameter.grad = None

    def _make_head(self, name: str, kind: TaskKind) -> nn.Module | None:
        """A task's head as it starts, from a random stream of its own; float32, on the CPU."""
        settings = (getattr(self.core.config, key, None) for key in DROPOUTS)
        dropout = next((float(x) for x in settings if x is not None), 0.0)
        # Layers draw from torch's global stream when they are made; nobody else's numbers may depend on that.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            width = model_width(self.core, f"of the head of {name}")
            return kind.make_head(width, dropout, tensor_stream(self.config.seed, "head", name))

    def _take_importance(self, name: str, data: Any, batch_size: int) -> None:
        if not self.config.gated:
            raise ValueError("seal_task: plain adapters have no importance; call it without data")
        pad = getattr(self.tokenizer, "pad_token_id", None)
        pad = getattr(self.core.config, "pad_token_id", None) if pad is None else pad
        batches = importance.batches_of(
            self.store.record(name).kind, data, batch_size, tokenizer=self.tokenizer, pad_id=pad or 0,
            device=self._device(),
        )  # fmt: skip

        def losses() -> Iterator[torch.Tensor]:
            for batch in batches:
                with torch.enable_grad():
                    loss = self.loss(**batch)
                yield loss

        with self.using(name), importance.evaluation_mode(self.model):
            raw = importance.raw_importance(self.layers, losses(), self.options.importance_of)
        importance.accumulate(self.layers, raw, self.options.importance_per)

    def _merged(self, shared: Tensors, takes_scores: bool) -> Tensors:
        """Scores from here or from there, and the larger importance of both."""
        here = self.shared_state()
        merged = {**here, **{k: v for k, v in shared.items() if takes_scores and not k.startswith("importance.")}}
        for key, value in shared.items():
            if key.startswith("importance."):
                merged[key] = torch.maximum(here[key], value.to(here[key])) if key in here else value
        return merged

    def _check_backbone(self, saved: Mapping[str, Any], origin: str) -> None:
        here = self.geometry()
        for key, now in here.items():
            then = saved.get(key)
            if then == now:
                continue
            if isinstance(then, dict) and isinstance(now, dict):
                differ = sorted(set(then.items()) ^ set(now.items()))[0][0]
                then, now = (f"{differ}: {widths.get(differ, 'none')}" for widths in (then, now))
            raise StateError(
                f"{origin} was saved from another backbone: {key} {then} there, {now} in this {here['class']}; "
                "load it on the model that it was learned on"
            )
        if name := differing(saved["checksums"], self._fingerprints.of(self.core)):
            raise StateError(
                f"{origin} was saved from another backbone, of these sizes but other weights: the checksum of {name} "
                "differs from that of this model (in the widest dtype that both have); load it on the weights that it "
                "was learned on, in the dtype that it was saved in or a narrower one"
            )

    def _fitting_gates(self, task: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        gates = Tensors()
        for name, layer in self.layers.items() if self.config.gated else ():
            packed = tensors.get(f"gates.{name}")
            expected = (layer.out_features, -(-layer.in_features // 8))
            found = "missing" if packed is None else f"{packed.dtype} {tuple(packed.shape)}"
            if packed is None or packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
                raise StateError(
                    f"task {task!r}: gates of {name} are {found}, expected torch.uint8 {expected}; "
                    "use the model and configuration that it was learned with"
                )
            gates[name] = packed.to(layer.scores.device, copy=True)
        return gates

    def _frozen(self) -> Tensors:
        return {name: tensor for adapter in self.adapters.values() for name, tensor in adapter.frozen().items()}

    def _gate_bytes(self) -> int:
        return sum(adapter.gate_bytes() for adapter in self.adapters.values())

    def _bytes_with(self, head: nn.Module | None) -> int:
        return self._gate_bytes() + sum(t.numel() * t.element_size() for t in _named_head(head).values())

    def _size(self, layer: str) -> int:
        return self.layers[layer].weight.numel()

    def _ones(self, layer: str, packed: torch.Tensor) -> int:
        return int(unpack_gates(packed, self.layers[layer].in_features).sum())

    def _density_of(self, gates: Tensors) -> float | None:
        if not gates:
            return None
        return sum(self._ones(*item) for item in gates.items()) / sum(self._size(name) for name in gates)

    def _device(self) -> torch.device:
        first = next(iter(self.adapters.values()))
        return next(first.parameters()).device


def _named_head(head: nn.Module | None) -> Tensors:
    return {} if head is None else {f"head.{key}": tensor.detach() for key, tensor in head.state_dict().items()}
