"""Training of the whole backbone: no adapter, one set of weights that every task trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tss.adapters.config import AdapterConfig
from tss.adapters.site_adapter import UngatedSite
from tss.adapters.sites import model_width
from tss.adapters.task_store import TaskStore


class BackboneSite(UngatedSite):
    """Site that adds nothing to the output and trains the backbone in place; detaching does not restore its parameters.

    Args:
        core: the transformers model.
        config: settings of the adapters, none of which matters here.
        store: the model's tasks.

    Raises:
        ValueError: a parameter is not float32, so that an optimizer's steps would be lost.
    """

    reads_output = False
    core: Any

    def __init__(self, core: nn.Module, config: AdapterConfig, store: TaskStore) -> None:
        super().__init__(0, "", model_width(core, "of the backbone"), config, store)
        narrow = {name: p.dtype for name, p in core.named_parameters() if p.dtype != torch.float32}
        if narrow:
            name = next(iter(narrow))
            raise ValueError(
                f"training the whole backbone needs it in float32, but {name} is {narrow[name]}: load it with "
                "precision=float32"
            )
        object.__setattr__(self, "core", core)  # not as a submodule: it is part of the model already

    @property
    def layers(self) -> dict[str, Any]:
        return {}

    def hook(self, site: nn.Module, inputs: Any, output: Any) -> None:
        """Leave the output unchanged."""
        self._called()

    def adapt(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"weights.{name}": parameter for name, parameter in self.core.named_parameters()}

    def trained_below(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.core.named_parameters())
