"""Gated adapter at one site: frozen random weights, and the gates of the task of the current call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import nn

from tss.adapters.config import AdapterConfig
from tss.adapters.initialization import draw_scores, draw_weights
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.storage import Tensors
from tss.adapters.task_call import TaskCall, current_call
from tss.adapters.task_store import TaskStore
from tss_kernels import GatedAdapterLinear
from tss_kernels.modules import run_adapter, run_multi_task_adapter, unreached_threshold


class SiteLinear(GatedAdapterLinear):
    """Gated layer that uses the gates of the current call's task: packed ones, or those of its own live scores."""

    index = part = 0

    def gates_of_call(self, x: torch.Tensor) -> torch.Tensor | None:  # type: ignore[override]
        """Return the sealed task's packed gates on the device of x; None if the current call runs live scores."""
        call = current_call()
        if call is None or call.gates is None:
            return None
        gates = call.gates[self.index][self.part]
        return gates if gates.device == x.device else gates.to(x.device)


class GatedSite(SiteAdapter):
    """Frozen random weights, with the live scores of the task being trained or the packed gates of a sealed task.

    Args:
        index, site, width, store: as in `SiteAdapter`.
        config: shape, threshold, initialization and seed.
        dtype: dtype of the frozen weights; scores are float32.
    """

    gated = True
    down: SiteLinear
    up: SiteLinear

    def __init__(
        self, index: int, site: str, width: int, config: AdapterConfig, store: TaskStore, dtype: torch.dtype
    ) -> None:
        super().__init__(index, site, width, config, store)
        self.config = config
        if message := unreached_threshold(config.threshold, width, config.activation):
            warnings.warn(f"AdapterConfig: {message}", stacklevel=2)
        # Creating layers draws from torch's global generator, which must not affect other random numbers.
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

    def adapt_rows(self, hidden: torch.Tensor, call: TaskCall) -> torch.Tensor:
        if call.banks is not None:
            banks = [gates.to(hidden.device) for gates in call.banks[self.index]]
            ids = call.ids(hidden.shape[0], hidden.device)
            adapted = run_multi_task_adapter(hidden, self.down, self.up, self.activation, banks[0], banks[1], ids)
            if adapted is not None:
                return adapted
        return super().adapt_rows(hidden, call)

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
