"""A plain adapter whose hidden units are gated by task, and what past tasks claimed of them: HAT's part at one site."""

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
    """x + up(mask * activation(down(x))) on weights that all tasks share, with a mask (bottleneck,) of each task's own.

    While a task is learned, mask = sigmoid(slope * embedding); outside training, and once sealed, at full steepness.

    Attributes:
        embedding: e of the task being learned, trained.
        claimed: the largest mask value that a sealed task has for each hidden unit, in [0, 1].
        slope: of the mask in training mode.
        steepness: of the mask otherwise.
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
        self.embedding = nn.Parameter(torch.zeros(config.bottleneck), requires_grad=False)
        self.register_buffer("claimed", torch.zeros(config.bottleneck))

    def mask(self) -> torch.Tensor:
        """The mask of the task being learned, (bottleneck,).

        Its gradient is that of sigmoid(e) times the steepness, because a steep sigmoid passes hardly any on. That is
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
        """claimed <- max(claimed, mask at full steepness), for a task that ends."""
        self.claimed = torch.maximum(self.claimed, self._steepest())

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        stream = tensor_stream(self.seed, "embedding", self.site, task)
        with torch.no_grad():
            self.embedding.copy_(torch.empty(self.embedding.shape).normal_(generator=stream))

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
