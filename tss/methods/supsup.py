"""SupSup: each task finds a sub-network of the same frozen random adapters, from scores of its own."""

from __future__ import annotations

from tss.adapters.config import TssOptions
from tss.methods.base import Method


class SupSup(Method):
    """Wortsman et al., NeurIPS 2020 (arXiv 2006.14769), with the task known in testing, on this project's gates.

    It is TSS without what it hands on: scores are drawn afresh for every task and no importance masks them. Gates are
    scores at or above a threshold, as in TSS, where the paper keeps the largest share of each layer; the authors' code
    is for networks of their own, so only the gates of this project make the two comparable.
    """

    name = "supsup"
    gated = True
    never_forgets = True

    def layer_options(self) -> TssOptions:
        return TssOptions(soft_mask="none", score_copy=False)
