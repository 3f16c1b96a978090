"""Plain adapter with a gate per task and hidden unit, and the units that past tasks claimed: HAT at one site."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tss.adapters.config import AdapterConfig
from tss.adapters.plain_site import PlainSite
from tss.adapters.storage import Tensors
from tss.adapters.task_store import TaskStore
from tss.seeding import tensor_stream
from tss_kernels.modules import ACTIVATIONS


class MaskedSite(PlainSite):
    """x + up(mask * activation(down(x))) with weights that all tasks share, and a mask (bottleneck,) for each task.

    In training mode, mask = sigmoid(slope * embedding); otherwise, and once sealed, `steepness` replaces `slope`.

    Attributes:
        embedding: e of the task being trained, its trained parameter.
        claimed: the largest mask value of the sealed tasks for each hidden unit, in [0, 1].
        slope: slope of the mask in training mode.
        steepness: slope of the mask otherwise.
    """

    claimed: torch.Tensor

    def __init__(
        self,
        index: int,
        site: str,
        width: int,
        config: AdapterConfig,
        store: TaskStore,
        dtype: torch.dtype,
        steepness: float,
    ) -> None:
        super().__init__(index, site, width, config, store, dtype)
        self.slope = self.steepness = steepness
        self.embedding = nn.Parameter(torch.zeros(config.bottleneck, dtype=torch.float32), requires_grad=False)
        self.register_buffer("claimed", torch.zeros(config.bottleneck, dtype=torch.float32))

    def mask(self) -> torch.Tensor:
        """Return the mask (bottleneck,) of the task being trained.

        Its gradient is that of sigmoid(e) times the steepness, because that of a steep sigmoid is almost 0. This is
        HAT's compensation: s_max / s * (cosh(s e) + 1) / (cosh(e) + 1) times the gradient of sigmoid(s e).
        """
        slope = self.slope if self.training else self.steepness
        passed = self.steepness * torch.sigmoid(self.embedding)
        return torch.sigmoid(slope * self.embedding).detach() + (passed - passed.detach())

    def adapt(self, hidden: torch.Tensor) -> torch.Tensor:
        own = self._own()
        mask = self.mask() if own is None else own[0].to(hidden.device)
        inner = mask * ACTIVATIONS[self.activation](self.down(hidden.float()))
        return hidden + self.up(inner).to(hidden.dtype)

    @torch.no_grad()
    def claim(self) -> None:
        """Set claimed <- max(claimed, mask at full steepness), at the end of a task."""
        self.claimed = torch.maximum(self.claimed, self._steepest())

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        stream = tensor_stream(self.seed, "embedding", self.site, task)
        with torch.no_grad():
            self.embedding.copy_(torch.empty(self.embedding.shape, dtype=torch.float32).normal_(generator=stream))

    def trained(self) -> dict[str, nn.Parameter]:
        return super().trained() | {f"embedding.{self.site}": self.embedding}

    def kept(self) -> Tensors:
        return {f"{self.site}.mask": self._steepest()}

    def shared(self) -> Tensors:
        return super().shared() | {f"claimed.{self.site}": self.claimed}

    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._load(tensors, self.trained() | {f"claimed.{self.site}": self.claimed})

    def _steepest(self) -> torch.Tensor:
        return torch.sigmoid(self.steepness * self.embedding.detach())
