"""Plain adapter per task at one site: the trained weights are kept as a value, and the next task starts afresh."""

from __future__ import annotations

from tss.adapters.plain_site import PlainSite
from tss.adapters.storage import Tensors
from tss.seeding import tensor_stream


class OwnSite(PlainSite):
    """A `PlainSite` where a sealed task runs on the weights that it was sealed with.

    A task's initial weights are drawn by its name alone: tasks trained before it make no difference.
    """

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        self.draw(tensor_stream(self.seed, "adapter", self.site, task))

    def kept(self) -> Tensors:
        return {name.removeprefix("weights."): p.detach().clone() for name, p in self.trained().items()}
