"""LoRA per task for one linear layer of the backbone; its parameters are created by the package peft."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from tss.adapters.config import AdapterConfig
from tss.adapters.float32 import Float32Module
from tss.adapters.site_adapter import UngatedSite
from tss.adapters.storage import Tensors
from tss.adapters.task_store import TaskStore
from tss.errors import TssError
from tss.seeding import tensor_stream

ADAPTER, TARGET = "default", "target"


class LoraSite(UngatedSite, Float32Module):
    """LoRA: y + scaling * B A x, where y is the output of the backbone's linear layer for x, as in peft's own layer.

    peft would replace the linear layer, but the backbone's modules are promised to stay unchanged. So peft creates A, B
    and the scaling for a linear layer of the same sizes, and they run in a hook. A task's initial values are drawn by
    its name alone; a sealed task runs on the A and B that it was sealed with.

    Args:
        index, site, store: as in `SiteAdapter`.
        sizes: (in_features, out_features) of the linear layer.
        rank, alpha: rank and alpha of LoRA.
        config: settings of the adapters, of which only the seed is used.

    Raises:
        TssError: the package peft is not installed.
    """

    reads_output = False

    def __init__(
        self,
        index: int,
        site: str,
        sizes: tuple[int, int],
        config: AdapterConfig,
        store: TaskStore,
        rank: int,
        alpha: float,
    ) -> None:
        super().__init__(index, site, sizes[0], config, store)
        peft = import_peft()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            made = nn.ModuleDict({TARGET: nn.Linear(*sizes, bias=False, dtype=torch.float32)})
            lora = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=[TARGET], lora_dropout=0.0)
            peft.inject_adapter_in_model(lora, made, ADAPTER)
        layer: Any = made[TARGET]
        self.lora_A, self.lora_B = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        self.scaling: float = layer.scaling[ADAPTER]
        self._draw(tensor_stream(config.seed, "lora", site))
        self.requires_grad_(False)

    @torch.no_grad()
    def _draw(self, stream: torch.Generator) -> None:
        """Initialize as peft does: kaiming_uniform(a = sqrt 5) for A, zeros for B, so that LoRA first adds nothing."""
        drawn = nn.init.kaiming_uniform_(
            torch.empty(self.lora_A.weight.shape, dtype=torch.float32), a=math.sqrt(5), generator=stream
        )
        self.lora_A.weight.copy_(drawn)
        self.lora_B.weight.zero_()

    @property
    def layers(self) -> dict[str, Any]:
        return {f"{self.site}.lora_A": self.lora_A, f"{self.site}.lora_B": self.lora_B}

    def hook(self, site: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output + self(inputs[0]).to(output.dtype) if self._called() else None

    def adapt(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what is added to the linear layer's output (..., out), for its input (..., in)."""
        own, x = self._own(), hidden.to(self.lora_A.weight.dtype)
        if own is None:
            return self.lora_B(self.lora_A(x)) * self.scaling
        a, b = (tensor.to(hidden.device) for tensor in own)
        return linear(linear(x, a), b) * self.scaling

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        self._draw(tensor_stream(self.seed, "lora", self.site, task))

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"weights.{name}": layer.weight for name, layer in self.layers.items()}

    def kept(self) -> Tensors:
        return {name: layer.weight.detach().clone() for name, layer in self.layers.items()}


def import_peft() -> Any:
    """Import and return the package peft.

    Raises:
        TssError: it is not installed.
    """
    try:
        import peft  # pyright: ignore[reportMissingImports]  -- optional, and it takes seconds
    except ImportError as error:
        raise TssError(f"LoRA per task needs the package peft ({error}): pip install 'tss[lora]'") from error
    return peft
