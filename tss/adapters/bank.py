"""What the handle asks of the adapters of all sites, gated or plain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.site import AdapterSite
from tss_kernels import SoftMaskedAdamW


class Bank(ABC):
    """The adapters of all sites as one thing; `layers` and state dictionaries are named by site."""

    gated: ClassVar[bool]

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config
        self.sites: dict[str, AdapterSite] = {}

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> the linear layer."""
        return {
            f"{name}.{part}": getattr(site.adapter, part)
            for name, site in self.sites.items()
            for part in ("down", "up")
        }

    @torch.no_grad()
    def load_trained(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy the trained tensors back; raises KeyError for a missing one."""
        for name, parameter in self.trainable().items():
            parameter.copy_(state[name])

    @abstractmethod
    def make_adapter(self, site: str, width: int, device: Any, dtype: torch.dtype) -> nn.Module:
        """A frozen adapter for one site, drawn from the site's own stream."""

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """What a task trains."""

    @abstractmethod
    def start(self, task: str, first: bool, options: TssOptions) -> None:
        """Set the trained tensors to where `task` begins; `first` if no task was learned before."""

    @abstractmethod
    def optimizer(self, groups: list[dict[str, Any]], options: TssOptions, **settings: Any) -> SoftMaskedAdamW:
        """An optimizer over the groups that applies the soft mask exactly as often as the layers do not."""

    @abstractmethod
    def measure(self, losses: Iterable[torch.Tensor], options: TssOptions) -> None:
        """Take the importance of the task just learned, from one loss per batch."""

    @abstractmethod
    def seal(self) -> dict[str, torch.Tensor]:
        """What has to be kept of the task just learned, by layer."""

    @abstractmethod
    def activate(self, gates: Mapping[str, torch.Tensor] | None) -> None:
        """Run these gates, or the tensors being trained (None)."""

    @abstractmethod
    def live_gates(self) -> dict[str, torch.Tensor]:
        """The gates of the scores as they are, uint8 by layer; empty for plain adapters."""

    @abstractmethod
    def packed(self) -> dict[str, torch.Tensor]:
        """The gates that run now, uint8 by layer; empty for plain adapters."""

    @abstractmethod
    def density(self) -> dict[str, float]:
        """Share of gates that are on, by layer; empty for plain adapters."""

    @abstractmethod
    def shared_state(self) -> dict[str, torch.Tensor]:
        """What the next task starts from and is held back by."""

    @abstractmethod
    def load_shared_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `shared_state` gave."""

    @abstractmethod
    def frozen(self) -> dict[str, torch.Tensor]:
        """The adapters' tensors that never change."""
