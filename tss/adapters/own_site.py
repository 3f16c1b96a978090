"""A plain adapter of each task's own at one site: what was learned is kept as a value, the next task starts anew."""

from __future__ import annotations

from tss.adapters.plain_site import PlainSite
from tss.adapters.storage import Tensors
from tss.seeding import tensor_stream


class OwnSite(PlainSite):
    """As `PlainSite`, but a sealed task runs on the weights that it was sealed with.

    Each task starts from a draw of its own, by its name alone: what is learned before it makes no difference.
    """

    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        self.draw(tensor_stream(self.seed, "adapter", self.site, task))

    def kept(self) -> Tensors:
        return {name.removeprefix("weights."): p.detach().clone() for name, p in self.trained().items()}
