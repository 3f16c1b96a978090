"""HAT: each task gates the hidden units of shared adapters; the more past tasks use a unit, the less it changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tss.adapters.config import PlainOptions, check_above
from tss.methods.base import Batch, LearningRates, Method

if TYPE_CHECKING:
    import torch

    from tss.adapters import TssHandle
    from tss.adapters.masked_site import MaskedSite

LARGEST = 6.0
"""Bound of the embeddings' absolute values, as in the authors' code: beyond it, their gradient vanishes."""


@dataclass(frozen=True)
class HatOptions:
    """Options of HAT.

    Attributes:
        steepness: s_max, at which masks are nearly 0 or 1.
        sparsity: c, the factor of the regulariser that leaves units for later tasks.

    Raises:
        ValueError: names the option and its value.
    """

    steepness: float = 400.0
    sparsity: float = 0.75

    def __post_init__(self) -> None:
        check_above("HatOptions", "steepness", self.steepness, 1)
        check_above("HatOptions", "sparsity", self.sparsity, 0)


class Hat(Method):
    """HAT of Serra et al., ICML 2018 (arXiv 1801.01423), on the plain adapters that all tasks share.

    Each task gates the hidden units of every adapter by sigmoid(slope * e). Later tasks' updates of the parameters that
    lead into and out of a unit are scaled by 1 - its largest past mask; the bias of the up projection, which no unit
    gates, is trained by the first task alone. Updates are scaled instead of gradients, because Adam's updates hardly
    depend on the size of gradients, unlike those of the paper's SGD; for a fully claimed unit, both are the same. The
    slope rises over the steps of each epoch. The learning rate of the adapter weights is `adapter_lr`; that of the
    embeddings, which are scores of units, is `score_lr`.

    Avalanche has layers for HAT, to be built into a network of one's own, but no adapters with gates chosen by call.
    """

    name = "hat"
    options_type = HatOptions
    gated = False
    never_forgets = False

    def layer_options(self) -> PlainOptions:
        return PlainOptions(trained="masked", steepness=self.options.steepness)

    def make_optimizer(self, handle: TssHandle, rates: LearningRates) -> torch.optim.Optimizer:
        sites, optimizer = masked_sites(handle), cast("Any", super().make_optimizer(handle, rates))
        embeddings = [site.embedding for site in sites]
        weights = optimizer.param_groups[0]
        weights["params"] = [p for p in weights["params"] if not any(p is one for one in embeddings)]
        optimizer.add_param_group({"name": "embeddings", "params": embeddings, "lr": rates.score_lr})
        sealed = any(record.state == "sealed" for record in handle.tasks.values())
        for site in sites:
            down, up = site.down, site.up
            blocked = {
                down.weight: site.claimed[:, None].expand_as(down.weight),
                down.bias: site.claimed,
                up.weight: site.claimed[None, :].expand_as(up.weight),
                up.bias: site.claimed.new_full(up.bias.shape, float(sealed)),
            }
            for parameter, claimed in blocked.items():
                optimizer.set_importance(parameter, claimed.contiguous())

        def after_step(optimizer: Any, *_: Any) -> None:
            for embedding in embeddings:
                embedding.data.clamp_(-LARGEST, LARGEST)

        optimizer.register_step_post_hook(after_step)
        return optimizer

    def begin_step(self, handle: TssHandle, step: int, steps: int) -> None:
        """Set the slope of the masks: from 1 / s_max to s_max over the steps of an epoch; s_max for a single step."""
        least, most = 1 / self.options.steepness, self.options.steepness
        for site in masked_sites(handle):
            site.slope = least + (most - least) * step / (steps - 1) if steps > 1 else most

    def penalty(self, handle: TssHandle, batch: Batch) -> torch.Tensor | None:
        """Return sparsity * sum of m * (1 - claimed) / sum of (1 - claimed), over the hidden units of all adapters."""
        import torch  # imported here, because configurations are checked without torch

        sites = masked_sites(handle)
        free = torch.cat([1 - site.claimed for site in sites])
        used = torch.cat([site.mask() for site in sites]) * free
        return self.options.sparsity * used.sum() / free.sum().clamp(min=1e-6)

    def end_task(self, handle: TssHandle, name: str, batches: Iterable[Batch]) -> None:
        """Seal the task with its masks, and claim the units that the masks let through."""
        super().end_task(handle, name, batches)
        for site in masked_sites(handle):
            site.claim()


def masked_sites(handle: TssHandle) -> list[MaskedSite]:
    """Return the adapters of a model that was attached with HAT's options."""
    return cast("list[MaskedSite]", list(handle.adapters.values()))
