"""TSS: popup scores choose a sub-network of frozen random adapters, softly masked by past tasks' importance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tss.adapters.config import TssOptions
from tss.methods.base import Batch, Method

if TYPE_CHECKING:
    from tss.adapters import TssHandle


class Tss(Method):
    """TSS of Ke et al., Findings of EMNLP 2023 (arXiv 2310.09436); `TssOptions` has its options."""

    name = "tss"
    options_type = TssOptions
    gated = True
    never_forgets = True
    averages_importance = True

    def layer_options(self) -> TssOptions:
        return self.options

    def end_task(self, handle: TssHandle, name: str, batches: Iterable[Batch]) -> None:
        handle.seal_task(batches, name=name)
