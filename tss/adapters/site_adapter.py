"""Adapter at one site, shared by all tasks, which runs with the gates of the current call's task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from tss.adapters.config import AdapterConfig
from tss.adapters.storage import Tensors, load_exactly
from tss.adapters.task_call import TaskCall, calling, current_call
from tss.adapters.task_store import TaskStore
from tss.errors import StateError

PARTS = ("down", "up")


class SiteAdapter(nn.Module, ABC):
    """Adapter of one site for all tasks; `down` and `up` are its layers.

    Attributes:
        index: index of the site among the model's sites.
        site: full name of the module whose output is adapted.
        width: last dimension of that output.
        store: the tasks of the model that the adapter is part of.
    """

    gated: ClassVar[bool]
    reads_output: ClassVar[bool] = True
    """Whether the adapter is a function of its site's output alone."""
    down: Any
    up: Any

    def __init__(self, index: int, site: str, width: int, config: AdapterConfig, store: TaskStore) -> None:
        super().__init__()
        self.index, self.site, self.width, self.store = index, site, width, store
        self.activation, self.seed = config.activation, config.seed

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> the linear layer."""
        return {f"{self.site}.{part}": getattr(self, part) for part in PARTS}

    def hook(self, site: nn.Module, inputs: Any, output: Any) -> Any:
        """Forward hook of the site; a bound method, so that a deep copy of the model finds its own adapter."""
        if not self._called():
            return None
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)

    def _called(self) -> bool:
        """Return whether the current call is one of this model and has a task."""
        call = current_call()
        if call is not None and call.owner is self.store:
            return True
        if call is None and self.store.learning is not None and _in_backward():
            raise StateError(
                "a checkpointed layer runs again in the backward pass with no active task while "
                f"{self.store.learning!r} is being trained: enable checkpointing on the model that tss.attach "
                "returned, with model.gradient_checkpointing_enable(), which remembers the task of the forward pass"
            )
        return False

    def _own(self) -> tuple[torch.Tensor, ...] | None:
        """Return the tensors that the current call's sealed task keeps at this site; None if the live tensors run."""
        call = current_call()
        return None if call is None or call.gates is None else call.gates[self.index]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run each row of hidden (B, ..., width) through its task's adapter.

        Returns:
            The same shape and dtype; from LoRA (B, ..., out_features) in the dtype of its weights.
        """
        if hidden.shape[-1] != self.width:
            raise ValueError(
                f"site {self.site} outputs {hidden.shape[-1]} features where {self.width} were expected: "
                "choose sites whose output is the hidden state"
            )
        call = current_call()
        if call is None or call.count is None:
            return self.adapt(hidden)
        shape = hidden.shape
        if hidden.dim() == 2:  # OPT's feed-forward block has batch and length in one dimension
            hidden = hidden.unflatten(0, (call.most_rows(shape[0]), -1))
        return self.adapt_rows(hidden, call).view(*shape[:-1], -1)

    def adapt_rows(self, hidden: torch.Tensor, call: TaskCall) -> torch.Tensor:
        """Run each row of hidden (B, ..., width) for its own task among those of a call, task by task."""
        groups, back = call.groups(hidden.shape[0], hidden.device)
        parts = []
        for of_task, rows in groups:
            with calling(of_task):
                parts.append(self.adapt(hidden[rows]))
        return torch.cat(parts)[back]

    @abstractmethod
    def adapt(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the adapter's output, including the residual, for rows of one task, that of the current call."""

    @abstractmethod
    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        """Start training a task.

        Args:
            task: its name.
            fresh: start from scores drawn for this task; False starts from the current tensors.
            masked: the backward pass scales score gradients by (1 - importance).
        """

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters, by full name."""

    def renew(self) -> list[nn.Parameter]:
        """Replace the adapter's trained parameters with new ones that share their values; return the old ones.

        An optimizer created before can then be distinguished from one created after: it holds other parameters.
        """
        trained, before = {id(parameter) for parameter in self.trained().values()}, []
        for module in self.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in trained:
                    before.append(parameter)
                    module._parameters[name] = nn.Parameter(parameter.detach(), parameter.requires_grad)
        return before

    @abstractmethod
    def packed(self) -> Tensors:
        """Return the packed gates of the live scores, by layer; empty without gates."""

    @abstractmethod
    def shared(self) -> Tensors:
        """Return the state that is passed on from task to task."""

    @abstractmethod
    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load a result of `shared`; raise StateError if it does not fit."""

    @abstractmethod
    def frozen(self) -> Tensors:
        """Return the adapter's tensors that never change, by full name."""

    def kept(self) -> Tensors:
        """Return copies of the live weights that a sealed task keeps here, by name; empty if they are shared."""
        return {}

    def trained_below(self) -> frozenset[str]:
        """Return the names of the backbone's own parameters that are trained."""
        return frozenset()

    def gate_bytes(self) -> int:
        """Return the bytes of gates or weights kept at this site for a sealed task."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.kept().values())

    def _load(self, tensors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
        load_exactly(targets, tensors, f"adapter at {self.site}")


class UngatedSite(SiteAdapter):
    """Site without gates: its weights themselves are trained, and are the state passed on from task to task."""

    gated = False

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        """Do nothing: there is one set of weights for all tasks."""

    def packed(self) -> Tensors:
        return {}

    def shared(self) -> Tensors:
        return {name: parameter.detach() for name, parameter in self.trained().items()}

    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._load(tensors, self.trained())

    def frozen(self) -> Tensors:
        return {}


def _in_backward() -> bool:
    # The autograd engine's id of the backward pass running on this thread; -1 if there is none.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
