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
from tss.adapters.checkpointing import forget_calls
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
    """The tasks of a model that `tss.attach` gave; `print` shows them as a table.

    Active and trainable are separate: a sealed task can run while another is being learned. Which task is active is
    each thread's own; a thread that never chose runs what is being learned.

    Attributes:
        model: the `TssModel`; backbone: what it was put around.
        config, options: which adapters, and how tasks are learned.
        adapters: site -> its adapter for all tasks.
        store: the tasks.
        choice: which of them runs on this thread.
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
        """The task that is being learned, the first of those learned together, or None."""
        return self.store.learning

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> `GatedAdapterLinear`, or `nn.Linear` in plain adapters."""
        return self._tensors.layers

    @property
    def head(self) -> nn.Module | None:
        """The head of the task being learned; of several, of the first."""
        return None if self.trainable is None else self._tensors.head_of(self.trainable)

    # The life of a task: new -> learning -> sealed.

    def add_task(self, name: str, kind: TaskKind) -> None:
        """Make a task known; its state is new.

        Raises:
            StateError: the name is taken.
            ValueError: it is no name, or the model cannot learn tasks of this kind.
            TypeError: `kind` is no kind of task.
        """
        self.store.check_free(name)
        if not isinstance(kind, TaskKind):
            raise TypeError(
                f"add_task: kind must be a tss.Classification(labels=[...]), Extraction or Generation, got {kind!r}"
            )
        kind = kind.for_model(self.core)
        self.store.add(name, kind, self._tensors.bytes_with(self._tensors.make_head(name, kind)))

    def train_task(self, name: str) -> None:
        """Begin to learn a new task: it becomes active, and only its scores and its head require gradients.

        Its scores start as the first draw, then as a copy of the last task's or (`score_copy=False`) as a draw of its
        own. Accumulated importance masks them as `options.soft_mask` says. A task being learned just goes on.

        What is trained are new parameters: an optimizer that was made before this is refused when it steps.

        Raises:
            StateError: no such task, a sealed one, or another task is being learned.
        """
        self.train_tasks([name])

    def train_tasks(self, names: Sequence[str]) -> None:
        """Begin to learn new tasks together: each has a head of its own, and all move the weights that they share.

        The first becomes active; choose another with `use` or `using` for its batches. Each is sealed by itself.

        Raises:
            StateError: no such task, a sealed one, or others are being learned.
            ValueError: no name, a name twice, or several tasks on adapters of which each task keeps a part as its own.
        """
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected the names of tasks, each once, got {names}")
        if len(names) > 1 and self._tensors.gate_bytes():
            raise ValueError(
                f"{len(names)} tasks cannot be learned together on these adapters, of which each task keeps gates or "
                'weights of its own: attach with AdapterConfig(gated=False) and PlainOptions(trained="shared")'
            )
        begins = self.store.record(names[0]).state is State.NEW
        self.store.start(*names)
        if begins:
            sealed = any(record.state is State.SEALED for record in self.tasks.values())
            self._tensors.start(*names, fresh=sealed and not self.options.score_copy)
        self.use(names[0])

    def seal_task(self, data: Any = None, *, name: str | None = None, batch_size: int = 32) -> None:
        """End the task being learned: importance, then its gates packed to 1 bit; it can never change again.

        A task whose scores or head no step has moved is sealed with a warning. In a distributed run every process calls
        this: importance is averaged over all of them.

        Args:
            data: its training data, passed over once in evaluation mode: batches with labels (dicts of tensors, such
                as a DataLoader gives), or single examples, encoded (input_ids, labels) or, if `tokenizer` is set, raw.
                None, with a warning, or `soft_mask="none"`: no importance is taken, so nothing holds later tasks back
                from its scores.
            name: the task, to be sure; it must be the one being learned, or one of those learned together.
            batch_size: for single examples.

        Raises:
            StateError: no task, or another one, is being learned; or scores, head or a gradient are not finite. It is
                then still being learned.
            ValueError: data without a batch or without labels.
        """
        learners = self.store.learners
        if name not in learners and (name is not None or len(learners) != 1):
            raise StateError(
                f"cannot seal {name or 'a task'}: the task being learned is {' or '.join(learners) or 'none'}"
            )
        task = name or learners[0]
        check_whole(self.layers)
        self.check_finite()
        if unmoved := self._tensors.unmoved(task):
            warnings.warn(
                f"task {task!r} is sealed with the {' and the '.join(unmoved)} that it began with: no optimizer has "
                "moved them. Make one after train_task, of model.tss.trainable_parameters(), and step it",
                stacklevel=2,
            )
        if self.options.soft_mask != "none":
            if data is not None:
                self._take_importance(task, data, batch_size)
            elif self.config.gated:
                warnings.warn(
                    f"task {task!r} is sealed without data, so no importance is taken and later tasks may change what "
                    "it relies on in the shared scores: give its training data, or TssOptions(soft_mask='none')",
                    stacklevel=2,
                )
        self._tensors.seal(task)

    def abandon(self) -> None:
        """Leave what is being learned: it is new again, and the scores are what they were before it.

        Raises:
            StateError: no task is being learned.
        """
        self._tensors.abandon()

    def delete_task(self, name: str) -> None:
        """Forget a task that is new or sealed. The importance that it added to the shared scores stays.

        Raises:
            StateError: no such task, or it is being learned.
        """
        self.store.delete(name)

    def rename_task(self, old: str, new: str) -> None:
        """Another name for a task that is new or sealed; what it answers stays the same.

        Raises:
            StateError: no such task, it is being learned, or the new name is taken.
            ValueError: the new name is none.
        """
        self.store.rename(old, new)
        self.choice.rename(old, new)

    def check_finite(self) -> None:
        """Raise StateError if scores or head of the task being learned are not finite: a gate of NaN reads as off."""
        self._tensors.check_finite()

    # Which task runs.

    @property
    def active(self) -> str | None:
        """The task that a call runs which names none.

        None: there is none, so that such a call raises, or runs the model without adapters after `use(None)` and while
        there are no tasks; or rows have tasks of their own.
        """
        return self.choice.active

    def use(self, task: str | Sequence[str] | None) -> None:
        """Make a task active on this thread, or one for each row; None: the original model, adapters are bypassed.

        It stays so until another is chosen: a call raises StateError if that task was deleted or abandoned since.

        Raises:
            StateError: no such task, or one that was never trained.
            ValueError: no names; later, a batch that does not fit one name per row.
        """
        self._check_attached()
        self.choice.use(task)

    @contextmanager
    def using(self, task: str | Sequence[str] | None) -> Iterator[None]:
        """`use(task)` for a while; what was active before is active again after."""
        self._check_attached()
        with self.choice.using(task):
            yield

    def resolve(self, task: Task) -> TaskCall:
        """What `task=` means in a call: a task for all rows, one per row, or None, the original model.

        Raises:
            StateError: no such task, or one that was never trained; or the call names none, and none is active.
            ValueError: no names.
        """
        if isinstance(task, TaskCall):
            return task
        self._check_attached()
        return self.choice.resolve(task)

    # Training.

    @cached_property
    def frozen_prefix(self) -> FrozenPrefix | None:
        """The frozen layers before the first adapter; None where there are none that could be skipped."""
        return find_prefix(self.core, self.adapters)

    def loss(self, *, prefix_states: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """The loss of the active task: what `model(**inputs).loss` is, but without logits that no label asks for.

        Args:
            prefix_states: what `frozen_prefix.compute` gave for these inputs; what it holds is then not computed again.
            inputs: of the model's forward pass, with labels; ValueError without.
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
        """What is being learned: "scores" (plain adapters: their weights) and "head"; empty lists if nothing is."""
        if self.trainable is None:
            return {"scores": [], "head": []}
        scores = [parameter for adapter in self.adapters.values() for parameter in adapter.trained().values()]
        return {"scores": scores, "head": [p for name in self.store.learners for p in self.head_parameters(name)]}

    def head_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of the head of a task being learned; empty if it has none of its own.

        Raises:
            StateError: it is not being learned.
        """
        if name not in self.store.learners:
            raise StateError(f"task {name!r} is {self.store.record(name).state}: no head of it is being learned")
        head = self._tensors.head_of(name)
        return [] if head is None else list(head.parameters())

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are being learned, in the form that PEFT uses."""
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
        """A fresh optimizer with groups "scores" and "head", without weight decay, which would move masked scores.

        With `soft_mask="update"` it applies the mask; with "gradient" the layers do in the backward pass, and it does
        not. So "gradient" takes any optimizer that decays no scores, and "update" needs this one. Any other is checked
        when it steps: StateError if it would break the soft mask, a warning if its rate would teach scores nothing.

        Args:
            score_lr: learning rate of the scores (plain adapters: of their weights).
            head_lr: of the head; a generation task has none and needs none.
            betas, eps: of Adam.

        Raises:
            StateError: no task is being learned.
            ValueError: the task has a head, and no rate for it is given.
        """
        if self.trainable is None:
            raise StateError("no task is being learned: call train_task(name) before making its optimizer")
        check_whole(self.layers)
        masks: dict[torch.Tensor, torch.Tensor] = {}
        if self.options.soft_mask == "update" and self.config.gated:
            masks = {x.scores: x.importance for x in self.layers.values() if x.importance is not None}
        parameters = self.trainable_parameters()
        if head_lr is None and parameters["head"]:
            raise ValueError(f"task {self.trainable!r} has a head of its own: give its learning rate, head_lr=...")
        rates = {"scores": score_lr, "head": head_lr or 0.0}
        return optimizers.make_optimizer(parameters, rates, masks, betas=betas, eps=eps)

    # What the gates look like.

    def packed(self) -> Tensors:
        """The gates that run now, of the live scores if none runs: uint8 by layer; empty for plain adapters."""
        if self.active is not None and self.tasks[self.active].state is State.SEALED:
            return {name: packed.clone() for name, packed in self.store.sealed(self.active).gates.items()}
        return {name: packed for adapter in self.adapters.values() for name, packed in adapter.packed().items()}

    def density(self) -> dict[str, float]:
        """The share of those gates that is on, by layer; empty for plain adapters."""
        return {
            name: self._tensors.ones(name, packed) / self._tensors.size(name) for name, packed in self.packed().items()
        }

    def flipped(self, since: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The share of gates that differ from `since`, which `packed` gave earlier, by layer."""
        return table.flipped(since, self.packed(), {name: self._tensors.size(name) for name in self.layers})

    # State. The tensors are the handle's own, as in `state_dict`: clone what has to stay as it is.

    def learning_state(self) -> Tensors:
        """What is being learned: scores (plain adapters: weights) and head; heads by task where there are several."""
        return self._tensors.learning_state()

    def load_learning_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `learning_state` gave; raises StateError if it does not fit."""
        self._tensors.load_learning_state(tensors)

    def shared_state(self) -> Tensors:
        """What is handed from task to task: last scores and importance; plain adapters: their weights."""
        return self._tensors.shared_state()

    def load_shared_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `shared_state` gave; raises StateError if it does not fit."""
        self._tensors.load_shared_state(tensors)

    def task_state(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """A task's own tensors ("gates.<layer>" uint8 once sealed, "head.<parameter>") and JSON-able metadata."""
        return self._tensors.task_state(name)

    def load_task_state(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        """Add the task that `task_state` gave; a failure adds nothing.

        Raises:
            StateError: there is a task of that name; or the tensors or the metadata do not fit.
        """
        self._check_attached()
        self._tensors.load_task_state(name, tensors, metadata)

    def fingerprint(self, name: str) -> str:
        """sha256 over the gates and the head of a sealed task, as they are now.

        Raises:
            StateError: no such task, or it is not sealed.
        """
        return digest(self.store.sealed(name).tensors())

    def verify(self) -> None:
        """Raise ForgettingError if anything changed that a sealed task's answers depend on; the message says what.

        That is its gates and head, the adapters' frozen weights, and all parameters and persistent buffers of the
        backbone. All of it is read: a pass over the backbone.
        """
        self._check_attached()
        self._tensors.verify()

    def frozen_fingerprint(self) -> str:
        """A digest of what never changes, read anew: all values of the backbone, and the adapters' frozen tensors."""
        self._check_attached()
        return self._tensors.frozen.fingerprint()

    def bytes_per_task(self, name: str) -> dict[str, int]:
        """Bytes kept for a task: {"gates", "head", "total"}."""
        return self._tensors.bytes_per_task(name)

    # On disk.

    def save(self, directory: str | Path, tasks: Sequence[str] | None = None, *, replace: bool = False) -> None:
        """Write adapters, importance and all tasks, or those named, never the backbone; `tss.load` reads them.

        A folder that holds a save changes as one: whatever goes wrong, it then holds the old or the new one. It holds
        what was saved last and nothing else, so a save that lacks tasks of the folder, another model's or, with
        `tasks`, this one's, is refused; so that no work is lost by it, it is then saved beside that folder.

        Args:
            directory: made if it is missing; not the folder of a run.
            tasks: some of them; None: all.
            replace: write although tasks that the folder holds are lost by it.

        Raises:
            StateError: no such task, or values that are not finite; or tasks of the folder would be lost.
            ForgettingError: what a sealed task's answers depend on was written to.
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
        """Upload what `save` writes to the Hugging Face hub, with a card; `tss.load(backbone, repository)` reads it.

        Args:
            repository: "owner/name".
            tasks: some of them; None: all.
            scores: task -> metric -> value, as the task's kind scores it, for the card and the hub's model index.
            replace: upload although tasks that the repository holds are lost by it.
            settings: of the client's `create_repo`: private, token.

        Raises:
            StateError: as `save`; scores of a task that is not among them.
        """
        return hub.push(self.saved(tasks), repository, scores, replace=replace, **settings)

    def saved(self, tasks: Sequence[str] | None = None, extra: Tensors | None = None) -> saving.SavedTasks:
        """What `save` writes, and `extra` tensors beside it."""
        self._check_attached()
        return self._tensors.saved(tasks, extra)

    def restore(self, saved: saving.SavedTasks, origin: str) -> None:
        """Add the tasks of `saved`; if there are none here yet, take over scores and importance too.

        Args:
            saved: of a model with the same settings.
            origin: its folder, for messages.

        Raises:
            StateError: another backbone or other adapters, or names that are taken; nothing is added then.
        """
        self._check_attached()
        self._tensors.restore(saved, origin)

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
        return backbone

    # Steps that several of these share.

    def _check_attached(self) -> None:
        if self._backbone is None:
            raise StateError("these adapters were taken off their model: call tss.attach(model) for new ones")

    def _take_importance(self, name: str, data: Any, batch_size: int) -> None:
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

        with self.using(name), importance.evaluation_mode(self.model):
            raw = importance.raw_importance(self.layers, losses(), self.options.importance_of)
        importance.accumulate(self.layers, raw, self.options.importance_per, self.options.importance_scale)
