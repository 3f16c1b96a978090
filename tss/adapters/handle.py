"""`model.tss`: the tasks of one model, their life cycle, and which of them runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tss.adapters import hub, importance, optimizers, saving, table, task_forward
from tss.adapters.checkpointing import evaluation_mode, forget_calls
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.frozen_prefix import FrozenPrefix, find_prefix, reuse_states
from tss.adapters.learning import TasksLearned, check_whole
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.storage import Tensors, digest
from tss.adapters.task_call import TaskCall, calling
from tss.adapters.task_choice import ACTIVE, Task, TaskChoice
from tss.adapters.task_store import State, TaskRecord, TaskStore
from tss.adapters.task_tensors import TaskTensors
from tss.errors import StateError
from tss.tasks.base import TaskKind
from tss_kernels import SoftMaskedAdamW


class TssHandle:
    """Manage the tasks of a model created by `tss.attach`; `print` shows them as a table.

    The active task and the trained task are separate: a sealed task can run while another one is trained. Each thread
    has its own active task, by default the one being trained.

    Attributes:
        model: the `TssModel`; backbone: the model it wraps.
        config, options: settings of the adapters and of training.
        adapters: site -> adapter, shared by all tasks.
        store: the tasks.
        choice: the active task of each thread.
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
        self._tensors = TaskTensors(task_forward.core_of(backbone), config, options, adapters, store, learning)
        self.choice = TaskChoice(store, learning)
        self._required_grad = {name: p.requires_grad for name, p in backbone.named_parameters()}

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
        """The model that the `TssModel` wraps.

        Raises:
            StateError: it was detached.
        """
        self._check_attached()
        return self._backbone

    @property
    def core(self) -> Any:
        """The transformers model inside the backbone."""
        return task_forward.core_of(self.backbone)

    @property
    def tasks(self) -> Mapping[str, TaskRecord]:
        """Task name -> record, in the order of `add_task`."""
        return self.store.tasks

    @property
    def trainable(self) -> str | None:
        """The task being trained (the first one, if several are trained together), or None."""
        return self.store.learning

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> `GatedAdapterLinear`, or `nn.Linear` in plain adapters."""
        return self._tensors.layers

    @property
    def head(self) -> nn.Module | None:
        """The head of the task being trained (the first one, if several are trained together), or None."""
        return None if self.trainable is None else self._tensors.head_of(self.trainable)

    # Task states: new -> learning -> sealed.

    def add_task(self, name: str, kind: TaskKind) -> None:
        """Add a task, in the state "new".

        Args:
            name: a non-empty line of printable text.
            kind: a `Classification`, `Extraction` or `Generation`.

        Raises:
            StateError: the name is taken.
            ValueError: the name is invalid, or the model does not support this kind.
            TypeError: `kind` is not a kind of task.
        """
        self.store.check_free(name)
        if not isinstance(kind, TaskKind):
            raise TypeError(
                f"add_task: kind must be a tss.Classification(labels=[...]), Extraction or Generation, got {kind!r}"
            )
        kind = kind.for_model(self.core)
        self.store.add(name, kind, self._tensors.bytes_with(self._tensors.make_head(name, kind)))

    def train_task(self, name: str) -> None:
        """Start training a task: it becomes active, and only its scores and its head require gradients.

        The scores start from the last trained task's scores, or from a new random draw with `score_copy=False`.
        `options.soft_mask` says how accumulated importance masks their gradients. If the task is being trained already,
        training continues.

        The trained tensors are new parameters: create the optimizer after this call. The step of an earlier optimizer
        raises StateError.

        Raises:
            StateError: there is no such task, it is sealed, or another task is being trained.
            ForgettingError: something has changed that predictions of sealed tasks depend on (see `verify`, which also
                finds writes through `.data`).
        """
        self.train_tasks([name])

    def train_tasks(self, names: Sequence[str]) -> None:
        """Start training several tasks together, with a head each, on shared plain adapters.

        The first task becomes active; select another with `use` or `using` for its batches. Seal each separately.

        Raises:
            StateError: there is no such task, it is sealed, or other tasks are being trained.
            ValueError: no name, a repeated name, or several tasks on adapters that are not shared.
            ForgettingError: as in `train_task`.
        """
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected at least one task name and no name twice, got {names}")
        if len(names) > 1 and self._tensors.gate_bytes():
            raise ValueError(
                f"{len(names)} tasks cannot be trained together on these adapters, where each task has its own gates "
                'or weights: attach with AdapterConfig(gated=False) and PlainOptions(trained="shared")'
            )
        begins = self.store.record(names[0]).state is State.NEW
        if begins:  # before hours of training on weights that a save would refuse
            self._tensors.verify(fresh=False, kept=False)
        self.store.start(*names)
        if begins:
            self._tensors.start(*names, fresh=not self.options.score_copy)
        self.use(names[0])

    def seal_task(self, data: Any = None, *, name: str | None = None, batch_size: int = 32) -> None:
        """Finish training a task: accumulate its importance and pack its gates to 1 bit per weight.

        A sealed task never changes. Warns if the scores or the head are still at their initial values. In distributed
        training, call this in every process; importance is averaged over all of them.

        Args:
            data: the training data, read once in evaluation mode: batches with labels (dicts of tensors, for example
                from a DataLoader), or single examples, encoded (input_ids, labels) or, if `tokenizer` is set, raw. With
                None (which warns) or `soft_mask="none"`, no importance is computed: later tasks may change all scores.
            name: the task; it must be the one being trained, or one of those trained together.
            batch_size: batch size for single examples.

        Raises:
            StateError: no task or another task is being trained, or scores, head or a gradient are not finite. Training
                can then continue.
            ValueError: the data has no batch or no labels.
        """
        learners = self.store.learners
        if name not in learners and (name is not None or len(learners) != 1):
            raise StateError(
                f"cannot seal {name or 'a task'}: the task being trained is {' or '.join(learners) or 'none'}"
            )
        task = name or learners[0]
        check_whole(self.layers)
        self.check_finite()
        # What can be refused, also a warning that is an error, comes before anything changes.
        raw = None
        if self.options.soft_mask != "none":
            if data is not None:
                raw = self._raw_importance(task, data, batch_size)
            elif self.config.gated:
                warnings.warn(
                    f"task {task!r} is sealed without data, so its importance is not computed and later tasks may "
                    "change the shared scores that it relies on: give its training data, or "
                    "TssOptions(soft_mask='none')",
                    stacklevel=2,
                )
        if unmoved := self._tensors.unmoved(task):
            warnings.warn(
                f"task {task!r} is sealed with its initial {' and '.join(unmoved)}: no optimizer has changed them. "
                "Create one after train_task, for model.tss.trainable_parameters(), and call its step()",
                stacklevel=2,
            )
        value = self._tensors.value_to_seal(task)
        if raw is not None:
            importance.accumulate(self.layers, raw, self.options.importance_per, self.options.importance_scale)
        self._tensors.seal(task, *value)

    def abandon(self) -> None:
        """Stop training and discard it: the task is "new" again, and the scores are as before `train_task`.

        If several tasks were trained together and some are sealed, the shared weights stay: those tasks rely on them.

        Raises:
            StateError: no task is being trained.
        """
        self._tensors.abandon()

    def delete_task(self, name: str) -> None:
        """Delete a new or sealed task. Its contribution to the accumulated importance stays.

        Raises:
            StateError: there is no such task, or it is being trained.
        """
        self.store.delete(name)

    def rename_task(self, old: str, new: str) -> None:
        """Rename a new or sealed task.

        Raises:
            StateError: there is no such task, it is being trained, or the new name is taken.
            ValueError: the new name is invalid.
        """
        self.store.rename(old, new)
        self.choice.rename(old, new)

    def check_finite(self) -> None:
        """Raise StateError if the scores or the head of the task being trained are not finite."""
        self._tensors.check_finite()

    # The active task.

    @property
    def active(self) -> str | None:
        """The task that calls without `task` use on this thread.

        None if calls run the backbone without adapters (after `use(None)`, or without tasks), if they raise because no
        task was chosen or the chosen one was deleted or abandoned, or if each row has its own task.
        """
        return self.choice.active

    def use(self, task: str | Sequence[str] | None) -> None:
        """Set the active task of this thread, or one task per row; None bypasses the adapters.

        Calls raise StateError if the task is deleted or abandoned later.

        Raises:
            StateError: there is no such task, or it was never trained.
            ValueError: no names. Later calls raise it if the batch does not have one row per name.
        """
        self._check_attached()
        self.choice.use(task)

    @contextmanager
    def using(self, task: str | Sequence[str] | None) -> Iterator[None]:
        """Set the active task within a `with` block, as `use` does."""
        self._check_attached()
        with self.choice.using(task):
            yield

    def resolve(self, task: Task) -> TaskCall:
        """Resolve the argument `task` of a call: a task for all rows, one per row, or None for the backbone alone.

        Raises:
            StateError: there is no such task, it was never trained, or no task is given and none is active.
            ValueError: no names.
        """
        if isinstance(task, TaskCall):
            return task
        self._check_attached()
        return self.choice.resolve(task)

    # Training.

    @cached_property
    def frozen_prefix(self) -> FrozenPrefix | None:
        """The frozen layers before the first adapter, whose outputs can be reused; None if there are none."""
        return find_prefix(self.core, self.adapters)

    def loss(self, *, prefix_states: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """Compute the loss of the active task. Equals `model(**inputs).loss`, but skips logits without labels.

        Args:
            prefix_states: result of `frozen_prefix.compute` for these inputs, to reuse it.
            inputs: inputs of the model's forward pass, with labels.

        Raises:
            ValueError: there are no labels.
        """
        if inputs.get("labels") is None:
            raise ValueError(f"a loss needs labels, got only {', '.join(inputs) or 'nothing'}")
        call = self.resolve(ACTIVE)
        with reuse_states(self.frozen_prefix if prefix_states is not None else None, prefix_states):
            if not call.active or call.rows is not None or "forward" in vars(self.model):
                return self.model(**inputs).loss  # with what others put around its forward: accelerate's autocast
            with calling(call):
                return task_forward.loss(self.backbone, call, inputs, inputs.pop("labels"))

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters: "scores" (plain adapters: weights) and "head"; empty lists if no task is trained."""
        if self.trainable is None:
            return {"scores": [], "head": []}
        scores = [parameter for adapter in self.adapters.values() for parameter in adapter.trained().values()]
        return {"scores": scores, "head": [p for name in self.store.learners for p in self.head_parameters(name)]}

    def head_parameters(self, name: str) -> list[nn.Parameter]:
        """The head's parameters of a task being trained; empty if it has no head.

        Raises:
            StateError: the task is not being trained.
        """
        if name not in self.store.learners:
            raise StateError(f"task {name!r} is {self.store.record(name).state}: it has no head that is being trained")
        head = self._tensors.head_of(name)
        return [] if head is None else list(head.parameters())

    def print_trainable_parameters(self) -> None:
        """Print the number of trainable parameters, in the same format as PEFT."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        every = sum(p.numel() for p in self.model.parameters())
        print(f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}")

    def optimizer(
        self,
        *,
        score_lr: float,
        head_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> SoftMaskedAdamW:
        """Create an optimizer with the parameter groups "scores" and "head", without weight decay.

        With `soft_mask="update"`, this optimizer applies the mask and is required. With `soft_mask="gradient"`, the
        layers apply it in the backward pass, and any optimizer without weight decay on the scores works. The step of
        another optimizer raises StateError if it would violate the soft mask, and warns if its learning rate is too
        small to change gates.

        Args:
            score_lr: learning rate of the scores (of the weights, for plain adapters).
            head_lr: learning rate of the head; not needed for generation tasks, which have no head.
            betas, eps: as in Adam.

        Raises:
            StateError: no task is being trained.
            ValueError: the task has a head, and `head_lr` is missing; or a learning rate is negative.
        """
        if self.trainable is None:
            raise StateError("no task is being trained: call train_task(name) before creating its optimizer")
        check_whole(self.layers)
        masks: dict[torch.Tensor, torch.Tensor] = {}
        if self.options.soft_mask == "update" and self.config.gated:
            masks = {x.scores: x.importance for x in self.layers.values() if x.importance is not None}
        parameters = self.trainable_parameters()
        if head_lr is None and parameters["head"]:
            raise ValueError(f"task {self.trainable!r} has its own head: give its learning rate, head_lr=...")
        rates = {
            "scores": optimizers.checked_rate("score_lr", score_lr),
            "head": optimizers.checked_rate("head_lr", head_lr or 0.0),
        }
        return optimizers.make_optimizer(parameters, rates, masks, betas=betas, eps=eps)

    # Gates.

    def packed(self) -> Tensors:
        """Packed gates (uint8) by layer, of the active task or else of the current scores; empty for plain adapters."""
        if self.active is not None and self.tasks[self.active].state is State.SEALED:
            return {name: packed.clone() for name, packed in self.store.sealed(self.active).gates.items()}
        return {name: packed for adapter in self.adapters.values() for name, packed in adapter.packed().items()}

    def density(self) -> dict[str, float]:
        """Fraction of the gates of `packed` that are on, by layer; empty for plain adapters."""
        return {
            name: self._tensors.ones(name, packed) / self._tensors.size(name) for name, packed in self.packed().items()
        }

    def flipped(self, since: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Fraction of the gates that differ from `since`, an earlier result of `packed`, by layer."""
        return table.flipped(since, self.packed(), {name: self._tensors.size(name) for name in self.layers})

    # State. As in `state_dict`, tensors are not copied.

    def learning_state(self) -> Tensors:
        """State of training: scores (weights, for plain adapters) and head, or heads by task if there are several."""
        return self._tensors.learning_state()

    def load_learning_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load a result of `learning_state`; raises StateError if it does not fit."""
        self._tensors.load_learning_state(tensors)

    def shared_state(self) -> Tensors:
        """State passed on to the next task: scores and importance (weights, for plain adapters)."""
        return self._tensors.shared_state()

    def load_shared_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load a result of `shared_state`; raises StateError if it does not fit."""
        self._tensors.load_shared_state(tensors)

    def task_state(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """A task's tensors ("gates.<layer>" in uint8 once sealed, "head.<parameter>") and its metadata, plain JSON."""
        return self._tensors.task_state(name)

    def load_task_state(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        """Add a task from a result of `task_state`.

        Raises:
            StateError: the name is taken, or the tensors or the metadata do not fit. Nothing is added.
        """
        self._check_attached()
        self._tensors.load_task_state(name, tensors, metadata)

    def fingerprint(self, name: str) -> str:
        """SHA-256 of the gates and the head of a sealed task.

        Raises:
            StateError: there is no such task, or it is not sealed.
        """
        return digest(self.store.sealed(name).tensors())

    def verify(self) -> None:
        """Check that nothing has changed that predictions of sealed tasks depend on.

        Reads and compares gates and heads, the adapters' frozen weights, and all parameters and persistent buffers of
        the backbone.

        Raises:
            ForgettingError: something has changed; the message says what.
        """
        self._check_attached()
        self._tensors.verify()

    def frozen_fingerprint(self) -> str:
        """Digest of the current values of the backbone and of the adapters' frozen tensors."""
        self._check_attached()
        return self._tensors.frozen.fingerprint()

    def bytes_per_task(self, name: str) -> dict[str, int]:
        """Bytes stored for a task: {"gates", "head", "total"}."""
        return self._tensors.bytes_per_task(name)

    # On disk.

    def save(self, directory: str | Path, tasks: Sequence[str] | None = None, *, replace: bool = False) -> None:
        """Save adapters, importance and tasks to a folder, without the backbone; `tss.load` loads them.

        The folder is replaced as a whole: after a failure it has either the old or the new content. If it has tasks
        that this save does not, StateError is raised and nothing is replaced; the save is then written to another
        folder beside it, which the message names.

        Args:
            directory: folder, created if missing; not the folder of a run.
            tasks: names of the tasks to save; None for all.
            replace: replace the folder even if it has tasks that this save does not.

        Raises:
            StateError: there is no such task, values are not finite, or tasks in the folder would be lost.
            ForgettingError: something has changed that predictions of sealed tasks depend on.
        """
        saving.save(Path(directory), self.saved(tasks), replace=replace)

    def push_to_hub(
        self,
        repository: str,
        tasks: Sequence[str] | None = None,
        *,
        scores: hub.Scores | None = None,
        replace: bool = False,
        **settings: Any,
    ) -> str:
        """Save to the Hugging Face hub, with a model card; `tss.load(backbone, repository)` loads it.

        Args:
            repository: "owner/name".
            tasks: names of the tasks to upload; None for all.
            scores: task -> metric -> value, for the model card and the model index.
            replace: replace the repository's content even if it has tasks that this save does not.
            settings: arguments for `huggingface_hub.create_repo`, such as private and token.

        Raises:
            StateError: as in `save`, or `scores` has a task that is not uploaded.
        """
        return hub.push(self.saved(tasks), repository, scores, replace=replace, **settings)

    def saved(self, tasks: Sequence[str] | None = None, extra: Tensors | None = None) -> saving.SavedTasks:
        """The content that `save` writes, with `extra` tensors."""
        self._check_attached()
        return self._tensors.saved(tasks, extra)

    def restore(self, saved: saving.SavedTasks, origin: str) -> None:
        """Add the tasks of `saved`; if the model has no trained tasks yet, also load scores and importance.

        Args:
            saved: saved from a model with the same settings.
            origin: its folder, for messages.

        Raises:
            StateError: the backbone or the adapters differ, a name is taken, or its tasks share trained weights that
                differ from this model's. Nothing is added.
        """
        self._check_attached()
        self._tensors.restore(saved, origin)

    def detach(self) -> Any:
        """Remove the adapters and return the backbone as it was before `attach`."""
        backbone, core = self.backbone, self.core
        self._tensors.finish()
        forget_calls(core)
        for site, adapter in self.adapters.items():
            hooks = core.get_submodule(site)._forward_hooks
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is adapter]:
                del hooks[key]
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(self._required_grad.get(name, parameter.requires_grad))
        self._model, self._backbone, self.store = None, None, TaskStore()
        return backbone

    # Helpers.

    def _check_attached(self) -> None:
        if self._backbone is None:
            raise StateError("these adapters were detached from their model: call tss.attach(model) to add new ones")

    def _raw_importance(self, name: str, data: Any, batch_size: int) -> dict[str, torch.Tensor]:
        if not self.config.gated:
            raise ValueError("seal_task: plain adapters have no importance; call it without data")
        pad = getattr(self.tokenizer, "pad_token_id", None)
        pad = getattr(self.core.config, "pad_token_id", None) if pad is None else pad
        batches = importance.batches_of(
            self.store.record(name).kind, data, batch_size, tokenizer=self.tokenizer, pad_id=pad or 0,
            device=self._tensors.device(),
        )  # fmt: skip

        def losses() -> Iterator[torch.Tensor]:
            for batch in batches:
                with torch.enable_grad():
                    loss = self.loss(**batch)
                yield loss

        with self.using(name), evaluation_mode(self.model):
            return importance.raw_importance(self.layers, losses(), self.options.importance_of)
