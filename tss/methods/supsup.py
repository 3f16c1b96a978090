"""SupSup: each task trains its own scores, which choose a sub-network of the same frozen random adapters."""

from __future__ import annotations

from tss.adapters.config import TssOptions
from tss.methods.base import Method


class SupSup(Method):
    """SupSup of Wortsman et al., NeurIPS 2020 (arXiv 2006.14769), with known tasks in testing, on this project's gates.

    It is TSS without transfer between tasks: scores are drawn anew for every task and no importance masks them. A gate
    is on if its score is at or above a threshold, as in TSS, whereas the paper keeps the share of each layer that has
    the largest scores; the authors' code is for networks of their own, so only this project's gates make the two
    comparable.
    """

    name = "supsup"
    gated = True
    never_forgets = True

    def layer_options(self) -> TssOptions:
        return TssOptions(soft_mask="none", score_copy=False)
