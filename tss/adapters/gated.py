"""Gated adapters: frozen random weights, live scores of the task being learned, packed gates of every sealed task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from tss.adapters.bank import Bank, Tensors
from tss.adapters.config import AdapterConfig
from tss.errors import StateError
from tss.seeding import tensor_stream
from tss_kernels import GatedAdapter, GatedAdapterLinear


class GatedBank(Bank):
    """A gated adapter for all tasks; nothing above it knows that gates are bits.

    Args:
        site, width: name and width of the output that it adapts.
        config: shape, threshold, initialisation and seed.
        dtype: of the frozen weights; scores are float32.
    """

    gated = True

    def __init__(self, site: str, width: int, config: AdapterConfig, dtype: torch.dtype) -> None:
        # Layers draw from torch's global stream when they are made; nobody else's numbers may depend on that.
        with torch.random.fork_rng(devices=[]):
            adapter = GatedAdapter(
                width,
                config.bottleneck,
                config.activation,
                threshold=config.threshold,
                weight_init=config.weight_init,
                device="cpu",
                dtype=dtype,
            )
        super().__init__(site, width, adapter)
        self.seed = config.seed
        self.gates: dict[str, Tensors] = {}
        for name, layer in self.gated_layers().items():
            layer.reset_parameters(tensor_stream(self.seed, "adapter", name))

    def gated_layers(self) -> dict[str, GatedAdapterLinear]:
        """The layers, with their own type."""
        return self.layers

    def prepare(self, task: str | None) -> None:
        gates = self.gates.get(task) if task is not None else None
        for name, layer in self.gated_layers().items():
            packed = None if gates is None else gates[name]
            if layer.packed is not packed:
                layer.set_packed(packed)

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        self.learning = task
        for name, layer in self.gated_layers().items():
            layer.mask_gradient = masked
            if fresh:
                layer.reset_scores(tensor_stream(self.seed, "scores", name, task))

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"scores.{name}": layer.scores for name, layer in self.gated_layers().items()}

    def seal(self, task: str) -> None:
        self.prepare(None)
        self.gates[task] = {name: layer.pack() for name, layer in self.gated_layers().items()}
        self.learning = None

    def sealed(self, task: str) -> Tensors:
        return {f"gates.{name}": packed for name, packed in self.gates[task].items()}

    def load_sealed(self, task: str, tensors: Mapping[str, torch.Tensor]) -> None:
        gates = {}
        for name, layer in self.gated_layers().items():
            packed = tensors.get(f"gates.{name}")
            expected = (layer.out_features, -(-layer.in_features // 8))
            found = "missing" if packed is None else f"{packed.dtype} {tuple(packed.shape)}"
            if packed is None or packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
                raise StateError(
                    f"task {task!r}: gates of {name} are {found}, expected torch.uint8 {expected}; "
                    "use the model and configuration that it was learned with"
                )
            gates[name] = packed.to(layer.weight.device, copy=True)
        self.gates[task] = gates

    def shared(self) -> Tensors:
        layers = self.gated_layers()
        scores = {f"scores.{name}": layer.scores.detach() for name, layer in layers.items()}
        kept = {f"importance.{name}": layer.importance for name, layer in layers.items()}
        return scores | {name: importance for name, importance in kept.items() if importance is not None}

    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        layers = self.gated_layers()
        importances = {n: torch.empty_like(x.scores) for n, x in layers.items() if f"importance.{n}" in tensors}
        self.load(tensors, self.trained() | {f"importance.{name}": value for name, value in importances.items()})
        for name, layer in layers.items():
            layer.importance = importances[name].detach() if name in importances else None

    def frozen(self) -> Tensors:
        named = {f"{n}.{part}": getattr(x, part) for n, x in self.layers.items() for part in ("weight", "bias")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def gate_bytes(self) -> int:
        return sum(layer.out_features * -(-layer.in_features // 8) for layer in self.gated_layers().values())

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GatedBank:
        super()._apply(fn, recurse)
        self.gates = {task: {name: fn(packed) for name, packed in gates.items()} for task, gates in self.gates.items()}
        self.select(self.selection)
        return self
