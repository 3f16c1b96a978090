"""NCL, naive continual learning: one set of plain adapters trained on task after task; nothing guards the old ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tss.methods.base import Batch, LearningRates, Method

if TYPE_CHECKING:
    import torch

    from tss.adapters import TssHandle


class Ncl(Method):
    """The same adapter shapes and a head for each task, but the adapters' weights are shared and go on training."""

    name = "ncl"
    gated = False
    never_forgets = False

    def make_optimizer(self, handle: TssHandle, rates: LearningRates) -> torch.optim.Optimizer:
        return handle.optimizer(
            score_lr=rates.adapter_lr, head_lr=rates.head_lr, betas=(rates.beta1, rates.beta2), eps=rates.eps
        )

    def end_task(self, handle: TssHandle, name: str, batches: Iterable[Batch]) -> None:
        handle.seal_task(name=name)
