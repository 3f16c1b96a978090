"""Gated adapters: frozen random weights, one set of live scores, and the packed gates of every sealed task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tss.adapters.bank import Bank
from tss.adapters.config import TssOptions
from tss.adapters.streams import stream
from tss_kernels import (
    GatedAdapter,
    GatedAdapterLinear,
    SoftMaskedAdamW,
    accumulate_importance_,
    normalize_importance,
)


class GatedBank(Bank):
    """The gated layers of all sites; nothing above it knows that gates are bits."""

    gated = True

    def make_adapter(self, site: str, width: int, device: Any, dtype: torch.dtype) -> nn.Module:
        config = self.config
        adapter = GatedAdapter(
            width,
            config.bottleneck,
            config.activation,
            threshold=config.threshold,
            weight_init=config.weight_init,
            device=device,
            dtype=dtype,
        )
        generator = stream(config.seed, "adapter", site)
        for layer in (adapter.down, adapter.up):
            layer.reset_parameters(generator)
            layer.scores.requires_grad_(False)
        return adapter

    @property
    def gated_layers(self) -> dict[str, GatedAdapterLinear]:
        """The layers, with their own type."""
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, GatedAdapterLinear)}

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: layer.scores for name, layer in self.gated_layers.items()}

    def start(self, task: str, first: bool, options: TssOptions) -> None:
        for name, layer in self.gated_layers.items():
            if not first and not options.score_copy:
                layer.reset_scores(stream(self.config.seed, "scores", name, task))
            layer.mask_gradient = options.soft_mask == "gradient"

    def optimizer(self, groups: list[dict[str, Any]], options: TssOptions, **settings: Any) -> SoftMaskedAdamW:
        # Site "gradient" is applied by the layers' backward pass; the optimizer then knows no importance.
        masks = {}
        if options.soft_mask == "update":
            masks = {x.scores: x.importance for x in self.gated_layers.values() if x.importance is not None}
        return SoftMaskedAdamW(groups, weight_decay=0.0, site="update", importance=masks, **settings)

    def measure(self, losses: Any, options: TssOptions) -> None:
        """Importance of the task just learned: one gradient per batch, none of them softly masked, no update.

        a = mean over batches of (dL/ds) * g, I = max(I, |tanh((a - mean a) / (std a + 1e-6))|).
        """
        layers = self.gated_layers
        masked = {name: layer.mask_gradient for name, layer in layers.items()}
        gates = {name: layer.gate() for name, layer in layers.items()}
        sums = {name: torch.zeros_like(layer.scores) for name, layer in layers.items()}
        batches = 0
        try:
            for layer in layers.values():
                layer.mask_gradient = False
            for loss in losses:
                scores = [layer.scores for layer in layers.values()]
                grads = torch.autograd.grad(loss, scores, allow_unused=True)
                for name, grad in zip(layers, grads, strict=True):
                    if grad is not None:
                        grad = torch.where(gates[name], grad, 0)
                        sums[name] += grad.abs() if options.importance_of == "absolute" else grad
                batches += 1
        finally:
            for name, layer in layers.items():
                layer.mask_gradient = masked[name]
        if not batches:
            raise ValueError("seal_task: the data held no batch; give at least one, or None for no importance update")
        for name, layer in layers.items():
            new = normalize_importance(sums[name] / batches, per=options.importance_per)  # type: ignore[arg-type]
            if layer.importance is None:
                layer.importance = torch.zeros_like(new)
            accumulate_importance_(layer.importance, new)

    def seal(self) -> dict[str, torch.Tensor]:
        return self.packed()

    def activate(self, gates: Mapping[str, torch.Tensor] | None) -> None:
        for name, layer in self.gated_layers.items():
            layer.set_packed(None if gates is None else gates[name])

    def live_gates(self) -> dict[str, torch.Tensor]:
        layers = self.gated_layers
        from tss_kernels import pack_gates

        return {name: pack_gates(layer.scores.detach(), layer.threshold) for name, layer in layers.items()}

    def packed(self) -> dict[str, torch.Tensor]:
        return {name: layer.pack() for name, layer in self.gated_layers.items()}

    def density(self) -> dict[str, float]:
        return {name: layer.density() for name, layer in self.gated_layers.items()}

    def shared_state(self) -> dict[str, torch.Tensor]:
        state = {f"scores.{name}": layer.scores.detach() for name, layer in self.gated_layers.items()}
        importance = {name: layer.importance for name, layer in self.gated_layers.items()}
        return state | {f"importance.{name}": tensor for name, tensor in importance.items() if tensor is not None}

    @torch.no_grad()
    def load_shared_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.load_trained({name.removeprefix("scores."): t for name, t in state.items() if name.startswith("scores.")})
        for name, layer in self.gated_layers.items():
            importance = state.get(f"importance.{name}")
            layer.importance = None if importance is None else importance.to(layer.scores.device)

    def frozen(self) -> dict[str, torch.Tensor]:
        tensors = {f"{name}.weight": layer.weight for name, layer in self.gated_layers.items()}
        biases = {f"{name}.bias": layer.bias for name, layer in self.gated_layers.items()}
        return tensors | {name: bias for name, bias in biases.items() if bias is not None}
