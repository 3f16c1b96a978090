"""`model.tss`: the tasks of one model, their life cycle, and which of them is active."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tss.adapters import table
from tss.adapters.answering import Answering
from tss.adapters.bank import Bank
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.importance import losses_of
from tss.adapters.record import State, TaskRecord
from tss.adapters.storage import digest
from tss.adapters.streams import stream
from tss.errors import TssError
from tss.tasks.base import TaskKind, kind_from_dict

if TYPE_CHECKING:
    from tss_kernels import SoftMaskedAdamW

HEADS = "tss_heads"


class TssHandle(Answering):
    """The tasks of a model that `tss.attach` was called on.

    Attributes:
        model, config, options: what it is attached to and how.
        active: the task that runs, or None: then the adapters are bypassed.
        trainable: the task that is being learned, or None.
        tokenizer: set it to seal tasks from raw examples; None else.
        switches: how often the active task changed.
    """

    def __init__(self, model: Any, config: AdapterConfig, options: TssOptions, bank: Bank) -> None:
        self.model, self.config, self.options, self.bank = model, config, options, bank
        self.active: str | None = None
        self.trainable: str | None = None
        self.tokenizer: Any = None
        self.switches = 0
        self._records: dict[str, TaskRecord] = {}
        self._required_grad = {name: p.requires_grad for name, p in model.named_parameters()}

    # -- what there is

    @property
    def tasks(self) -> Mapping[str, TaskRecord]:
        """Name -> record, in the order in which the tasks were added."""
        return MappingProxyType(self._records)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> the adapter's linear layer."""
        return self.bank.layers

    def record(self, name: str) -> TaskRecord:
        """The record of a task; raises TssError listing the tasks if there is none of that name."""
        if name not in self._records:
            known = ", ".join(self._records) or "none yet; add one with add_task(name, kind)"
            raise TssError(f"there is no task {name!r}; the tasks are: {known}")
        return self._records[name]

    def __str__(self) -> str:
        return table.render(self)

    # -- the life of a task

    def add_task(self, name: str, kind: TaskKind) -> None:
        """Make a task known: state new, with a head of its own if its kind has one.

        Raises:
            TssError: the name is taken.
        """
        if name in self._records:
            raise TssError(f"task {name!r} is there already, {self._records[name].state}; choose another name")
        model_config = self.model.config
        width = getattr(model_config, "hidden_size", None) or model_config.d_model
        dropout = next((v for key in ("classifier_dropout", "hidden_dropout_prob", "dropout", "dropout_rate")
                        if isinstance(v := getattr(model_config, key, None), (int, float)) and v), 0.1)  # fmt: skip
        head = kind.make_head(int(width), float(dropout), stream(self.config.seed, "head", name))
        if head is not None:
            head = head.to(device=self.device, dtype=torch.float32).requires_grad_(False)
            head.train(self.model.training)
            getattr(self.model, HEADS)[f"task{len(self._records)}"] = head
        self._records[name] = TaskRecord(name, kind, head)

    def train_task(self, name: str) -> None:
        """Begin to learn a task: its scores start, it becomes active, and only scores and head take gradients.

        Raises:
            TssError: no such task, a sealed task, or another task that is being learned.
        """
        record = self.record(name)
        if record.state is State.SEALED:
            raise TssError(f"task {name!r} is sealed and can never change; add a task of another name to learn on")
        if self.trainable not in (None, name):
            raise TssError(f"task {self.trainable!r} is being learned; seal it before training {name!r}")
        if record.state is State.NEW:
            first = not any(r.state is State.SEALED for r in self._records.values())
            self.bank.start(name, first, self.options)
        record.state, self.trainable = State.LEARNING, name
        self._require_grad(record, True)
        self.use(name)

    def seal_task(self, data: Any = None, *, name: str | None = None) -> None:
        """End a task: importance from one pass over its training data, gates packed to 1 bit, nothing trainable.

        Args:
            data: batches with labels (dicts of tensors, or a DataLoader), or a list of examples if `tokenizer` is set;
                None leaves the importance as it is, so that later tasks are not held back by this one.
            name: the task, if given; it must be the one being learned.

        Raises:
            TssError: no task is being learned, or another one.
            ValueError: data without a batch.
        """
        if self.trainable is None or name not in (None, self.trainable):
            raise TssError(f"cannot seal {name or 'a task'}: the task being learned is {self.trainable or 'none'}")
        record = self._records[self.trainable]
        self.use(record.name)
        if data is not None and self.bank.gated and self.options.soft_mask != "none":
            self.bank.measure(losses_of(self, record, data), self.options)
        record.gates = self.bank.seal()
        record.state, self.trainable = State.SEALED, None
        self._require_grad(record, False)
        self.use(record.name)

    def _require_grad(self, record: TaskRecord, flag: bool) -> None:
        for parameter in (*self.bank.trainable().values(), *record.head_parameters().values()):
            parameter.requires_grad_(flag)
            if not flag:
                parameter.grad = None

    # -- which task runs

    def use(self, name: str | None) -> None:
        """Make a task active; None bypasses the adapters, so that the model is the original.

        Raises:
            TssError: no such task, or one that was not trained yet.
        """
        gates = None
        if name is not None:
            record = self.record(name)
            if record.state is State.NEW:
                raise TssError(f"task {name!r} is new; call train_task({name!r}) before using it")
            gates = record.gates if record.state is State.SEALED else None
        self.bank.activate(gates or None)
        for site in self.bank.sites.values():
            site.active, site.rows = name is not None, None
        if name != self.active or self.active is None:
            self.switches += 1
        self.active = name

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """`use(name)` for a while; the task that was active before is active again after."""
        before = self.active
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """Row i of every batch inside runs under task names[i]; beams repeat rows in order.

        Raises:
            TssError: an unknown or untrained task, or plain adapters, which have no gates to choose by.
        """
        gates = {name: self._gates_by_site(name) for name in dict.fromkeys(names)}
        before = self.active
        self.use(before)
        self.switches += 1
        for site_name, site in self.bank.sites.items():
            site.active, site.rows = True, list(names)
            site.gates = {name: by_site[site_name] for name, by_site in gates.items()}
        try:
            yield
        finally:
            self.use(before)

    def _gates_by_site(self, name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        record = self.record(name)
        if not self.bank.gated:
            raise TssError("plain adapters have one set of weights: rows of different tasks cannot run in one batch")
        if record.state is State.NEW:
            raise TssError(f"task {name!r} is new; call train_task({name!r}) before using it")
        gates = record.gates or self.bank.live_gates()
        return {site: (gates[f"{site}.down"], gates[f"{site}.up"]) for site in self.bank.sites}

    # -- training

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters being learned: "scores" (the adapters' own) and "head"; empty lists if none is."""
        if self.trainable is None:
            return {"scores": [], "head": []}
        head = self._records[self.trainable].head_parameters()
        return {"scores": list(self.bank.trainable().values()), "head": list(head.values())}

    def optimizer(
        self, *, score_lr: float, head_lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> SoftMaskedAdamW:
        """A fresh optimizer with groups "scores" and "head", no weight decay, the soft mask applied exactly once.

        Raises:
            TssError: no task is being learned.
        """
        if self.trainable is None:
            raise TssError("no task is being learned; call train_task(name) before making its optimizer")
        rates = {"scores": score_lr, "head": head_lr}
        groups = [
            {"name": name, "params": parameters, "lr": rates[name]}
            for name, parameters in self.trainable_parameters().items()
            if parameters
        ]
        return self.bank.optimizer(groups, self.options, betas=betas, eps=eps)

    # -- what the gates look like

    def density(self) -> dict[str, float]:
        """Share of gates that are on, by layer, as they run now; empty for plain adapters."""
        return self.bank.density()

    def packed(self) -> dict[str, torch.Tensor]:
        """The gates that run now, uint8 by layer; empty for plain adapters."""
        return self.bank.packed()

    def flipped(self, since: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Share of gates that differ from the packed gates `since`, by layer."""
        return table.flipped(since, self.packed(), {name: layer.weight.numel() for name, layer in self.layers.items()})

    # -- state

    def learning_state(self) -> dict[str, torch.Tensor]:
        """What the task being learned has trained so far: the adapters' tensors and its head."""
        if self.trainable is None:
            raise TssError("no task is being learned, so there is no learning state")
        trained = {f"trained.{name}": p.detach() for name, p in self.bank.trainable().items()}
        head = self._records[self.trainable].head_parameters()
        return trained | {f"head.{name}": p.detach() for name, p in head.items()}

    @torch.no_grad()
    def load_learning_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `learning_state` gave."""
        if self.trainable is None:
            raise TssError("no task is being learned, so no learning state can be loaded")
        self.bank.load_trained({k.removeprefix("trained."): v for k, v in state.items() if k.startswith("trained.")})
        for name, parameter in self._records[self.trainable].head_parameters().items():
            parameter.copy_(state[f"head.{name}"])

    def shared_state(self) -> dict[str, torch.Tensor]:
        """What is kept between tasks: last scores and importance, or the plain adapters' weights."""
        return self.bank.shared_state()

    def load_shared_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `shared_state` gave."""
        self.bank.load_shared_state(state)

    def task_state(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """A sealed task's tensors (packed gates, head) and metadata.

        Raises:
            TssError: no such task, or one that is not sealed.
        """
        record = self.record(name)
        if record.state is not State.SEALED:
            raise TssError(f"task {name!r} is {record.state}; only a sealed task can be stored")
        with self.using(name):
            density = self.density()
        metadata = {"name": name, "kind": record.kind.to_dict(), "state": str(record.state), "density": density}
        return record.tensors(), {**metadata, "fingerprint": record.fingerprint()}

    @torch.no_grad()
    def load_task_state(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        """Take a sealed task back from what `task_state` gave; a task of that name is replaced by it.

        Raises:
            TssError: gates that do not fit this model's layers; a task that is being learned.
        """
        if name == self.trainable:
            raise TssError(f"task {name!r} is being learned; seal it before loading a stored one of that name")
        gates = {k.removeprefix("gates."): v for k, v in tensors.items() if k.startswith("gates.")}
        expected = {layer: tuple(packed.shape) for layer, packed in self.bank.live_gates().items()}
        found = {layer: tuple(packed.shape) for layer, packed in gates.items()}
        if found != expected:
            wrong = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
            raise TssError(
                f"task {name!r} does not fit this model: gates of {wrong[0]} are {found.get(wrong[0])}, "
                f"expected {expected.get(wrong[0])}; attach with the configuration it was learned with"
            )
        if name not in self._records:
            self.add_task(name, kind_from_dict(metadata["kind"]))
        record = self._records[name]
        for key, parameter in record.head_parameters().items():
            parameter.copy_(tensors[f"head.{key}"])
        record.gates = {layer: packed.to(self.device) for layer, packed in gates.items()}
        record.state = State.SEALED
        if self.active == name:
            self.use(name)

    def fingerprint(self, name: str) -> str:
        """sha256 over a task's gates and head."""
        return self.record(name).fingerprint()

    def frozen_fingerprint(self) -> str:
        """sha256 over what never changes: the backbone's parameters and buffers and the adapters' frozen weights."""
        own = set(map(id, self._own_tensors()))
        backbone = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        frozen = {f"backbone.{name}": tensor for name, tensor in backbone.items() if id(tensor) not in own}
        return digest(frozen | {f"adapter.{name}": tensor for name, tensor in self.bank.frozen().items()})

    def _own_tensors(self) -> Iterable[torch.Tensor]:
        for module in (*self.bank.sites.values(), getattr(self.model, HEADS)):
            yield from module.parameters()
            yield from module.buffers()

    def bytes_per_task(self, name: str) -> dict[str, int]:
        """Bytes kept for a task: {"gates", "head", "total"}."""
        return self.record(name).sizes()

    def save(self, directory: str | Path) -> None:
        """Write adapters, importance and every sealed task, never the backbone; `tss.load` reads it."""
        from tss.adapters.persist import save

        save(self, Path(directory))

    def detach(self) -> Any:
        """Take everything off the model and return it as it was before `attach`, bit for bit."""
        from tss.adapters.attach import remove

        remove(self.model, self.bank.sites)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._required_grad[name])
        return self.model
