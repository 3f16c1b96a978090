"""Piggyback: each task learns which weights of frozen random adapters to switch off, starting with all of them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tss.adapters.config import TssOptions, check_above
from tss.methods.base import Method

if TYPE_CHECKING:
    from tss.adapters import TssHandle
    from tss.tasks.base import TaskKind


@dataclass(frozen=True)
class PiggybackOptions:
    """Options of Piggyback; the defaults are those of the paper's code.

    Attributes:
        threshold: a gate is on if its score is greater than this (equal is off).
        mask_scale: first value of every score of every task; above the threshold, so that every gate starts on.

    Raises:
        ValueError: names the option and its value.
    """

    threshold: float = 5e-3
    mask_scale: float = 1e-2

    def __post_init__(self) -> None:
        check_above("PiggybackOptions", "threshold", self.threshold, 0)
        check_above("PiggybackOptions", "mask_scale", self.mask_scale, self.threshold)


class Piggyback(Method):
    """Piggyback of Mallya et al., ECCV 2018 (arXiv 1801.06519), on the frozen adapters of this project.

    Scores, straight-through gradients and frozen weights are those of TSS; the threshold, the constant first scores and
    the lack of transfer between tasks are Piggyback's. The paper masks a pretrained network. Here the adapters' random
    weights are masked, as in every method that this one is compared with; the authors' code supports only its own
    layers.

    First scores are mask_scale - threshold above the threshold, and a step of Adam changes a score by about `score_lr`:
    a step of the size of that distance flips gates at once by the signs of single gradients. Use a fifth of it or less,
    as the quick presets do in their section `methods`.
    """

    name = "piggyback"
    options_type = PiggybackOptions
    gated = True
    never_forgets = True

    def layer_options(self) -> TssOptions:
        return TssOptions(soft_mask="none", score_copy=False)

    def begin_task(self, handle: TssHandle, name: str, kind: TaskKind) -> None:
        """Begin the task, then set the scores and the threshold of Piggyback.

        Raises:
            ValueError: the adapters were given a threshold too.
        """
        if handle.config.threshold != 0:
            raise ValueError(
                f"piggyback has its own threshold, {self.options.threshold}, so adapters.threshold="
                f"{handle.config.threshold} would have no effect: set method_options.threshold instead"
            )
        import torch  # imported here, because configurations are checked without torch

        super().begin_task(handle, name, kind)
        threshold = torch.tensor(self.options.threshold, dtype=torch.float32)
        # Layers compare with >=: the next larger float32 as threshold makes it > for every score.
        above = torch.nextafter(threshold, torch.full_like(threshold, torch.inf)).item()
        for layer in handle.layers.values():
            layer.threshold = above
            with torch.no_grad():
                layer.scores.fill_(self.options.mask_scale)
