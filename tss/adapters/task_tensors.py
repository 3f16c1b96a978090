"""Tensors of a model's tasks: those trained, passed on, kept and restored, and checks whether they changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from tss.adapters.config import SHARED_BY_TASKS, AdapterConfig, PlainOptions, TssOptions
from tss.adapters.fingerprints import checksum, is_sharded
from tss.adapters.frozen_weights import FrozenWeights
from tss.adapters.learning import LearningTask, TasksLearned, check_whole
from tss.adapters.optimizers import StepCheck
from tss.adapters.saving import SavedTasks
from tss.adapters.sealed_task import SealedTask
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.sites import model_width
from tss.adapters.storage import Tensors, digest, load_exactly
from tss.adapters.task_store import State, TaskRecord, TaskStore
from tss.errors import StateError
from tss.seeding import tensor_stream
from tss.tasks.base import TaskKind, kind_from_dict
from tss_kernels import unpack_gates

# Names of the dropout of a head in the configs of models, the most specific first.
DROPOUTS = ("classifier_dropout", "dropout", "dropout_rate", "hidden_dropout_prob")


class TaskTensors:
    """Adapters, the tasks being trained and the store of all tasks, as named tensors.

    Attributes:
        core: the transformers model.
        config, options: settings of the adapters and of training.
        adapters: site -> adapter.
        store: the tasks.
        learning: holds the heads being trained.
        frozen: the frozen weights that all tasks rely on.
        handed_on: the shared state except importance before training started, restored if the tasks are abandoned.
    """

    def __init__(
        self,
        core: Any,
        config: AdapterConfig,
        options: TssOptions,
        adapters: Mapping[str, SiteAdapter],
        store: TaskStore,
        learning: TasksLearned,
    ) -> None:
        self.core, self.config, self.options, self.adapters = core, config, options, dict(adapters)
        self.store, self.learning, self.handed_on = store, learning, Tensors()
        self._began: dict[str, str] = {}
        self._taken: list[nn.Parameter] = []  # of heads sealed while others are trained: their optimizer may step them
        self.frozen = FrozenWeights(core, adapters)
        self._steps = StepCheck(core, self.layers, options, gated=config.gated)

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> `GatedAdapterLinear`, or `nn.Linear` in plain adapters."""
        return {name: layer for adapter in self.adapters.values() for name, layer in adapter.layers.items()}

    def head_of(self, name: str) -> nn.Module | None:
        """Return the head of a task being trained."""
        return self.learning.of(name).head

    def check_finite(self) -> None:
        """Raise StateError if scores or head of the task being trained are not finite: a gate of NaN reads as off."""
        for name, tensor in (self.learning_state() if self.store.learning is not None else {}).items():
            if not tensor.isfinite().all():
                raise StateError(
                    f"task {self.store.learning!r}: {name} holds {int((~tensor.isfinite()).sum())} values that are not "
                    "finite; it is still being trained: restore an earlier state, or leave it with abandon(), and "
                    "lower its learning rates"
                )

    def unmoved(self, name: str) -> list[str]:
        """Return what is unchanged since training of a task started: "head", and "scores" ("weights" without gates)."""
        parts: dict[str, bool] = {}
        for key, value in self._learned_checksums(name).items():
            part = "head" if key.startswith("head.") else "scores" if self.config.gated else "weights"
            parts[part] = parts.get(part, True) and value == self._began.get(key)
        return [part for part, same in parts.items() if same]

    def _learned_checksums(self, *names: str) -> dict[str, str]:
        heads = {f"{key} of {name}": value for name in names for key, value in _named_head(self.head_of(name)).items()}
        state = (self._trained() | heads).items()
        return {key: checksum(tensor) for key, tensor in state if not tensor.is_meta and not is_sharded(tensor)}

    def _trained(self) -> Tensors:
        return {key: p.detach() for adapter in self.adapters.values() for key, p in adapter.trained().items()}

    def learning_state(self) -> Tensors:
        """Return the training state: scores (plain adapters: weights) and head; with several tasks, heads by task."""
        if not self.store.learners:
            raise StateError("no task is being trained: call train_task(name) first")
        trained = self._trained()
        heads = {name: _named_head(self.head_of(name)) for name in self.store.learners}
        if len(heads) == 1:
            return trained | heads[self.store.learners[0]]
        return trained | {f"{name}.{key}": tensor for name, head in heads.items() for key, tensor in head.items()}

    def load_learning_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load a result of `learning_state`; raise StateError if it does not fit."""
        load_exactly(self.learning_state(), tensors, f"learning state of {self.store.learning}")

    def shared_state(self) -> Tensors:
        """Return the state passed on from task to task: last scores and importance (plain adapters: weights)."""
        return {key: tensor for adapter in self.adapters.values() for key, tensor in adapter.shared().items()}

    def load_shared_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load a result of `shared_state`; raise StateError if it does not fit."""
        for adapter in self.adapters.values():
            adapter.load_shared(tensors)

    def task_state(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """Return a task's own tensors ("gates.<layer>" uint8 once sealed, "head.<parameter>") and JSON metadata."""
        record, tensors = self.store.record(name), Tensors()
        if record.state is State.SEALED:
            self.store.verify(name)
            tensors = self.store.sealed(name).tensors()
        if record.state is State.LEARNING:
            self.check_finite()
            tensors = _named_head(self.head_of(name)) | {
                f"start.{key}": tensor for key, tensor in self.handed_on.items()
            }
        about = {
            "name": name, "kind": record.kind.to_dict(), "state": str(record.state), "density": record.density,
            "hash": record.hash, "bytes": self.bytes_per_task(name),
        }  # fmt: skip
        return tensors, about

    def load_task_state(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        """Add a task from a result of `task_state`; a failure adds nothing.

        Raises:
            StateError: the name is taken, or the tensors or the metadata do not fit.
        """
        self.store.check_free(name)
        try:
            kind, state = kind_from_dict(metadata["kind"]), State(metadata["state"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"task {name!r}: its metadata does not describe a task ({error!r})") from error
        if state is State.LEARNING and self.store.learning is not None:
            raise StateError(f"task {name!r} is being trained, but so is {self.store.learning!r}; seal that one first")
        head = self.make_head(name, kind)
        value, density = None, None
        if state is State.SEALED:
            value = self._value_of(name, head, tensors, metadata.get("hash"))
            density = self.density_of(value.gates)
            self._remember_frozen()
        elif state is State.LEARNING:
            self._load_head(name, head, tensors)
        self.store.add(name, kind, self.bytes_with(head))
        if value is not None:
            self.store.seal(name, value, density)
        if state is State.LEARNING:
            self.store.start(name)
            self.start(name, fresh=False, head=head)
            self._began = {}  # the values with which its training started were not saved
            self.handed_on = {k.removeprefix("start."): v for k, v in tensors.items() if k.startswith("start.")}

    def add_kept_task(self, name: str, read: Callable[[], Tensors], metadata: Mapping[str, Any]) -> None:
        """Add a sealed task whose tensors are read on first use, which then raises as `load_task_state` does.

        Raises:
            StateError: the name is taken, or the metadata does not describe a sealed task.
        """
        try:
            kind, sha = kind_from_dict(metadata["kind"]), metadata["hash"]
            record = TaskRecord(name, kind, State.SEALED, metadata["bytes"]["total"], metadata["density"], sha)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"task {name!r}: its metadata does not describe a task ({error!r})") from error
        self._remember_frozen()
        self.store.add_kept(record, partial(self._read_kept, name, kind, read, sha))

    def _read_kept(self, name: str, kind: TaskKind, read: Callable[[], Tensors], sha: str) -> SealedTask:
        return self._value_of(name, self.make_head(name, kind), read(), sha)

    def _load_head(self, name: str, head: nn.Module | None, tensors: Mapping[str, torch.Tensor]) -> None:
        if head is not None:
            load_exactly({f"head.{k}": v for k, v in head.state_dict().items()}, tensors, f"task {name!r}")

    def _value_of(
        self, name: str, head: nn.Module | None, tensors: Mapping[str, torch.Tensor], sha: str | None
    ) -> SealedTask:
        """Return a sealed task's value on the adapters' device; checks that the tensors fit and are those sealed."""
        self._load_head(name, head, tensors)
        values = None if head is None else {k: v.detach().to(self.device()) for k, v in head.state_dict().items()}
        gates, weights = self._fitting_gates(name, tensors), self._fitting_weights(name, tensors)
        value = SealedTask(gates, values, weights, len(self.adapters))
        if sha not in (None, digest(value.tensors())):
            raise StateError(f"task {name!r}: gates and head are not those that were sealed; restore them")
        return value

    def bytes_per_task(self, name: str) -> dict[str, int]:
        """Return the bytes kept for a task: {"gates", "head", "total"}."""
        gates, total = self.gate_bytes(), self.store.record(name).bytes
        return {"gates": gates, "head": total - gates, "total": total}

    def verify(self, *, fresh: bool = True, kept: bool = True) -> None:
        """Raise ForgettingError, naming what changed, if anything that a sealed task relies on has changed.

        Args:
            fresh: read all frozen weights anew; False reads only those that torch knows were written to.
            kept: also read tasks that are not in memory.
        """
        sealed = self._sealed()
        for name in sealed:
            self.store.verify(name, fresh=kept)
        if sealed:
            self.frozen.verify(fresh=fresh)

    def _sealed(self) -> list[str]:
        return [name for name, record in self.store.tasks.items() if record.state is State.SEALED]

    def saved(self, tasks: Sequence[str] | None = None, extra: Tensors | None = None) -> SavedTasks:
        """Return the content that `save` writes.

        Raises:
            StateError: several tasks are being trained together, or values being trained are not finite.
            ForgettingError: something that a sealed task relies on was written to.
        """
        check_whole(self.layers)
        self.verify(fresh=False, kept=False)
        if len(self.store.learners) > 1:
            raise StateError(
                f"{', '.join(self.store.learners)} are being trained together, which a save cannot contain: seal them "
                "first, or store learning_state() yourself"
            )
        names = list(self.store.tasks) if tasks is None else [self.store.record(name).name for name in tasks]
        states = [self.task_state(name) for name in names]
        return SavedTasks(
            asdict(self.config), asdict(self.options), self.frozen.describe(), self.frozen.tensors(),
            self.shared_state(), states, extra or {},
        )  # fmt: skip

    def restore(self, saved: SavedTasks, origin: str) -> None:
        """Add the tasks of `saved`; if the model has no trained tasks yet, also load scores and importance.

        Args:
            saved: saved from a model with the same settings.
            origin: its folder, for messages.

        Raises:
            StateError: the backbone or the adapters differ, a name is taken, or its tasks share trained weights that
                differ from this model's. Nothing is added.
            ForgettingError: something that this model's own tasks rely on was written to.
        """
        self.verify(kept=False)
        self.frozen.check_same(saved.backbone, saved.frozen, origin)
        for _, about in (*saved.tasks, *saved.kept):
            self.store.check_free(about["name"])
        first, added = all(record.state is State.NEW for record in self.store.tasks.values()), []
        if not first:
            self._check_shared_weights(saved.shared, origin)
        try:
            for read, about in saved.kept:
                self.add_kept_task(about["name"], read, about)
                added.append(about["name"])
            for tensors, about in saved.tasks:
                self.load_task_state(about["name"], tensors, about)
                added.append(about["name"])
            takes_scores = first or any(about["state"] == State.LEARNING for _, about in saved.tasks)
            self.load_shared_state(saved.shared if first else self._merged(saved.shared, takes_scores))
        except Exception:
            for name in added:
                if name == self.store.learning:
                    self.finish()
                    self.store.abandon()
                self.store.delete(name)
            raise

    def _check_shared_weights(self, shared: Tensors, origin: str) -> None:
        """Raise StateError if tasks of a save rely on other trained weights than the tasks of this model."""
        if not isinstance(self.options, PlainOptions) or self.options.trained not in SHARED_BY_TASKS:
            return
        for key, tensor in self.shared_state().items():
            if key in shared and not torch.equal(tensor, shared[key].to(tensor)):
                raise StateError(
                    f"{origin}: its tasks were trained on other values of {key} than the tasks of this model, and all "
                    f"tasks share the trained weights (PlainOptions(trained={self.options.trained!r})): load them on a "
                    "new model of their own, or restart what serves this one"
                )

    def start(self, *names: str, fresh: bool, head: nn.Module | None = None) -> None:
        """Start training tasks, with new heads or with `head`; scores start afresh or stay as they are."""
        self.handed_on = {
            key: tensor.clone() for key, tensor in self.shared_state().items() if "importance." not in key
        }
        for adapter in self.adapters.values():
            self._steps.retire(adapter.renew())
            adapter.start(names[0], fresh=fresh, masked=self.options.soft_mask == "gradient")
        for name in names:
            kind = self.store.record(name).kind
            own = head if head is not None else self.make_head(name, kind)
            sealed = {self.store.record(other).hash: other for other in self._sealed()}
            about = {
                "kind": kind.to_dict(), "adapters": asdict(self.config), "options": asdict(self.options),
                "sealed": sealed,
            }  # fmt: skip
            self.learning.put(name, LearningTask(own, about), self.device())
        self._require_grad(True)
        self._began = self._learned_checksums(*names)
        self._steps.start(names[0])

    def finish(self) -> None:
        """End training: nothing requires gradients any more; scores stay as they are."""
        self._steps.retire((*self.learning.parameters(), *self._taken))
        self._taken = []
        self.learning.clear_with(self._require_grad)
        self.handed_on = Tensors()
        self._steps.finish()

    def _require_grad(self, flag: bool) -> None:
        trained = [parameter for adapter in self.adapters.values() for parameter in adapter.trained().values()]
        for parameter in (*trained, *self.learning.parameters()):
            parameter.requires_grad_(flag)
            parameter.grad = None

    def value_to_seal(self, name: str) -> tuple[SealedTask, float | None]:
        """Return a task that is being trained as it would be sealed, and its density; changes nothing of the task.

        Everything that takes memory or time, and so may fail or be interrupted, happens here.
        """
        head = self.head_of(name)
        gates = {layer: packed for adapter in self.adapters.values() for layer, packed in adapter.packed().items()}
        values = None if head is None else {key: tensor.detach().clone() for key, tensor in head.state_dict().items()}
        weights = {key: tensor for adapter in self.adapters.values() for key, tensor in adapter.kept().items()}
        value = SealedTask(gates, values, weights, len(self.adapters))
        self._remember_frozen()
        return value, self.density_of(gates)

    def seal(self, name: str, value: SealedTask, density: float | None) -> None:
        """Change the state of a task, learning -> sealed; `value` and `density` are what `value_to_seal` returned."""
        if self.store.learners == (name,):
            self.finish()
        else:
            self._taken += self.learning.of(name).parameters()
            self.learning.take(name)
        self.store.seal(name, value, density)

    def _remember_frozen(self) -> None:
        """Record the frozen weights that the first sealed task will rely on."""
        if not self._sealed():
            self.frozen.remember(fresh=True)

    def abandon(self) -> tuple[str, ...]:
        """Change the state of all tasks being trained, learning -> new: restore earlier scores; return the names.

        If others of the tasks that started together were sealed, they rely on the shared weights, which then stay.
        """
        names, start = self.store.abandon(), {} if self._taken else self.handed_on
        self.finish()
        for adapter in self.adapters.values():
            shared = adapter.shared()
            adapter.load_shared(shared | {key: start[key] for key in shared if key in start})
        return names

    def make_head(self, name: str, kind: TaskKind) -> nn.Module | None:
        """Create a task's head, initialized from its own random stream; float32, on the CPU."""
        settings = (getattr(self.core.config, key, None) for key in DROPOUTS)
        dropout = next((float(x) for x in settings if x is not None), 0.0)
        # Creating layers draws from torch's global generator, which must not affect other random numbers.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            width = model_width(self.core, f"of the head of {name}")
            return kind.make_head(width, dropout, tensor_stream(self.config.seed, "head", name))

    def density_of(self, gates: Tensors) -> float | None:
        """Return the fraction of packed gates that are on; None without gates."""
        if not gates:
            return None
        return sum(self.ones(*item) for item in gates.items()) / sum(self.size(name) for name in gates)

    def bytes_with(self, head: nn.Module | None) -> int:
        """Return the bytes kept for a task with this head."""
        return self.gate_bytes() + sum(t.numel() * t.element_size() for t in _named_head(head).values())

    def _merged(self, shared: Tensors, takes_scores: bool) -> Tensors:
        """Return the scores of `shared` if `takes_scores`, else this model's, and the larger importance of both."""
        here = self.shared_state()
        merged = {**here, **{k: v for k, v in shared.items() if takes_scores and not k.startswith("importance.")}}
        for key, value in shared.items():
            if key.startswith("importance."):
                merged[key] = torch.maximum(here[key], value.to(here[key])) if key in here else value
        return merged

    def _fitting_gates(self, task: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        gates = Tensors()
        for name, layer in self.layers.items() if self.config.gated else ():
            packed = tensors.get(f"gates.{name}")
            expected = (layer.out_features, -(-layer.in_features // 8))
            found = "missing" if packed is None else f"{packed.dtype} {tuple(packed.shape)}"
            if packed is None or packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
                raise StateError(
                    f"task {task!r}: gates of {name} are {found}, expected torch.uint8 {expected}; "
                    "use the model and configuration that it was trained with"
                )
            gates[name] = packed.to(layer.scores.device, copy=True)
        return gates

    def _fitting_weights(self, task: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        kept = {key: tensor for adapter in self.adapters.values() for key, tensor in adapter.kept().items()}
        load_exactly({f"weights.{key}": tensor for key, tensor in kept.items()}, tensors, f"task {task!r}")
        return kept

    def gate_bytes(self) -> int:
        """Return the bytes of gates, or of its own weights, kept for a task."""
        return sum(adapter.gate_bytes() for adapter in self.adapters.values())

    def size(self, layer: str) -> int:
        """Return the number of weights of a layer."""
        return self.layers[layer].weight.numel()

    def ones(self, layer: str, packed: torch.Tensor) -> int:
        """Return the number of gates of a layer that are on."""
        return int(unpack_gates(packed, self.layers[layer].in_features).sum())

    def device(self) -> torch.device:
        """Return the device of the trained parameters."""
        first = next(iter(self.adapters.values()))
        return next(iter(first.trained().values())).device


def _named_head(head: nn.Module | None) -> Tensors:
    return {} if head is None else {f"head.{key}": tensor.detach() for key, tensor in head.state_dict().items()}
