"""What runs at one site: an adapter that all tasks share, by the gates of the task of the current call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import linear

from tss.adapters.config import AdapterConfig
from tss.adapters.float32 import Float32Module
from tss.adapters.initialization import draw_scores, draw_weights
from tss.adapters.storage import Tensors, load_exactly
from tss.adapters.task_call import calling, current_call
from tss.adapters.task_store import TaskStore
from tss.errors import StateError
from tss.seeding import tensor_stream
from tss_kernels import GatedAdapterLinear
from tss_kernels.modules import ACTIVATIONS, WEIGHT_STD, run_adapter

PARTS = ("down", "up")


class SiteAdapter(nn.Module, ABC):
    """One site's adapter for all tasks; `down` and `up` are its layers.

    Attributes:
        index: of the site among the model's sites.
        site: full name of the module whose output is adapted.
        width: last dimension of that output.
        store: the tasks of the model that this is part of.
    """

    gated: ClassVar[bool]
    reads_output: ClassVar[bool] = True
    """The adapter is a function of its site's output alone."""
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
        """Whether the current call is of this model and has a task."""
        call = current_call()
        if call is not None and call.owner is self.store:
            return True
        if call is None and self.store.learning is not None and _in_backward():
            raise StateError(
                "a checkpointed layer runs again in the backward pass with no active task while "
                f"{self.store.learning!r} is being learned: enable checkpointing on the model that tss.attach "
                "gave, with model.gradient_checkpointing_enable(), which remembers the task of the forward pass"
            )
        return False

    def _own(self) -> tuple[torch.Tensor, ...] | None:
        """What the sealed task of the current call keeps at this site; None while the live tensors run."""
        call = current_call()
        return None if call is None or call.gates is None else call.gates[self.index]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (B, ..., width) -> the same shape and dtype, each row through its task's adapter."""
        if hidden.shape[-1] != self.width:
            raise ValueError(
                f"site {self.site} gives {hidden.shape[-1]} features where {self.width} were expected: "
                "choose sites whose output is the hidden state"
            )
        call = current_call()
        if call is None or call.rows is None:
            return self.adapt(hidden)
        shape = hidden.shape
        if hidden.dim() == 2:  # OPT's feed-forward block has batch and length in one dimension
            hidden = hidden.unflatten(0, (call.most_rows(shape[0]), -1))
        groups, back = call.groups(hidden.shape[0], hidden.device)
        parts = []
        for of_task, rows in groups:
            with calling(of_task):
                parts.append(self.adapt(hidden[rows]))
        return torch.cat(parts)[back].view(*shape[:-1], -1)

    @abstractmethod
    def adapt(self, hidden: torch.Tensor) -> torch.Tensor:
        """The adapter's output, residual included, for rows of one task: that of the current call."""

    @abstractmethod
    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        """Begin to learn a task.

        Args:
            task: its name.
            fresh: from scores drawn for this task; False: from the tensors as they are.
            masked: the backward pass scales score gradients by (1 - importance).
        """

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """What learning moves, by full name."""

    @abstractmethod
    def packed(self) -> Tensors:
        """Packed gates of the live scores, by layer; empty without gates."""

    @abstractmethod
    def shared(self) -> Tensors:
        """What is handed from task to task."""

    @abstractmethod
    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `shared` gave; raises StateError if it does not fit."""

    @abstractmethod
    def frozen(self) -> Tensors:
        """The adapter's tensors that never change, by full name."""

    def kept(self) -> Tensors:
        """Copies of the live weights that a sealed task keeps at this site, by name; empty where they are shared."""
        return {}

    def trained_below(self) -> frozenset[str]:
        """Names of the backbone's own parameters that learning moves."""
        return frozenset()

    def gate_bytes(self) -> int:
        """Bytes of gates or weights kept here for a sealed task."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.kept().values())

    def _load(self, tensors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
        load_exactly(targets, tensors, f"adapter at {self.site}")


class SiteLinear(GatedAdapterLinear):
    """A gated layer that runs the gates of the current call's task: packed ones, or its own live scores."""

    index = part = 0

    def gates_of_call(self, x: torch.Tensor) -> torch.Tensor | None:  # type: ignore[override]
        """The sealed task's packed gates, where x is; None while the current call runs live scores."""
        call = current_call()
        if call is None or call.gates is None:
            return None
        gates = call.gates[self.index][self.part]
        return gates if gates.device == x.device else gates.to(x.device)


class GatedSite(SiteAdapter):
    """Frozen random weights; the live scores of the task being learned, or a sealed task's packed gates.

    Args:
        index, site, width, store: as attributes.
        config: shape, threshold, initialisation and seed.
        dtype: of the frozen weights; scores are float32.
    """

    gated = True
    down: SiteLinear
    up: SiteLinear

    def __init__(
        self, index: int, site: str, width: int, config: AdapterConfig, store: TaskStore, dtype: torch.dtype
    ) -> None:
        super().__init__(index, site, width, config, store)
        self.config = config
        # Layers draw from torch's global stream when they are made; nobody else's numbers may depend on that.
        with torch.random.fork_rng(devices=[]):
            for part, (name, shape) in enumerate(
                {"down": (width, config.bottleneck), "up": (config.bottleneck, width)}.items()
            ):
                layer = SiteLinear(
                    *shape, threshold=config.threshold, weight_init=config.weight_init, device="cpu", dtype=dtype
                )
                layer.index, layer.part = index, part
                self.add_module(name, layer)
            draw_weights(self.down, self.up, site, config)
        self.requires_grad_(False)

    def adapt(self, hidden: torch.Tensor) -> torch.Tensor:
        return run_adapter(hidden, self.down, self.up, self.activation)

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        for layer in self.layers.values():
            layer.mask_gradient = masked
        if fresh:
            draw_scores(self.down, self.up, self.site, task, self.config)

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"scores.{name}": layer.scores for name, layer in self.layers.items()}

    def packed(self) -> Tensors:
        return {name: layer.pack() for name, layer in self.layers.items()}

    def shared(self) -> Tensors:
        scores = {f"scores.{name}": layer.scores.detach() for name, layer in self.layers.items()}
        kept = {f"importance.{name}": layer.importance for name, layer in self.layers.items()}
        return scores | {name: importance for name, importance in kept.items() if importance is not None}

    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        layers = self.layers
        importances = {n: torch.empty_like(x.scores) for n, x in layers.items() if f"importance.{n}" in tensors}
        self._load(tensors, self.trained() | {f"importance.{name}": value for name, value in importances.items()})
        for name, layer in layers.items():
            layer.importance = importances[name].detach() if name in importances else None

    def frozen(self) -> Tensors:
        named = {f"{n}.{part}": getattr(x, part) for n, x in self.layers.items() for part in ("weight", "bias")}
        return {name: tensor.detach() for name, tensor in named.items() if tensor is not None}

    def gate_bytes(self) -> int:
        return sum(layer.out_features * -(-layer.in_features // 8) for layer in self.layers.values())


class PlainSite(SiteAdapter, Float32Module):
    """A plain adapter for all tasks: old or new, they run on the trained float32 weights as they are now.

    x + up(activation(down(x))); down starts as N(0, 0.02²) and up as zero, so that it starts as the identity. A call
    that brings weights (down and its bias, up and its bias, for each site) runs on those.
    """

    gated = False
    down: nn.Linear
    up: nn.Linear

    def __init__(
        self, index: int, site: str, width: int, config: AdapterConfig, store: TaskStore, dtype: torch.dtype
    ) -> None:
        super().__init__(index, site, width, config, store)
        with torch.random.fork_rng(devices=[]):
            self.down = nn.Linear(width, config.bottleneck, device="cpu", dtype=torch.float32)
            self.up = nn.Linear(config.bottleneck, width, device="cpu", dtype=torch.float32)
        self.draw(tensor_stream(config.seed, "adapter", site))
        self.requires_grad_(False)

    @torch.no_grad()
    def draw(self, stream: torch.Generator) -> None:
        """Draw the weights with which the adapter starts, from a stream of the CPU."""
        self.down.weight.copy_(torch.empty(self.down.weight.shape).normal_(0.0, WEIGHT_STD, generator=stream))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            tensor.zero_()

    def adapt(self, hidden: torch.Tensor) -> torch.Tensor:
        activate, own = ACTIVATIONS[self.activation], self._own()
        if own is None:
            return hidden + self.up(activate(self.down(hidden.float()))).to(hidden.dtype)
        down, down_bias, up, up_bias = (tensor.to(hidden.device) for tensor in own)
        inner = activate(linear(hidden.float(), down, down_bias))
        return hidden + linear(inner, up, up_bias).to(hidden.dtype)

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        """Nothing: there is one set of weights."""

    def trained(self) -> dict[str, nn.Parameter]:
        layers = self.layers.items()
        return {f"weights.{name}.{part}": p for name, layer in layers for part, p in layer.named_parameters()}

    def packed(self) -> Tensors:
        return {}

    def shared(self) -> Tensors:
        return {name: parameter.detach() for name, parameter in self.trained().items()}

    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._load(tensors, self.trained())

    def frozen(self) -> Tensors:
        return {}


def _in_backward() -> bool:
    # The autograd engine's number for the backward pass that is running on this thread, -1 outside.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
