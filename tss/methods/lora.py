"""LoRA: every task trains its own low-rank update of linear layers, created by the package peft; nothing is shared."""

from __future__ import annotations

from dataclasses import dataclass

from tss.adapters.config import PlainOptions, check_lora
from tss.methods.base import Method


@dataclass(frozen=True)
class LoraOptions:
    """Options of one LoRA per task.

    Attributes:
        rank: rank of the matrices; None: see `match`.
        match: without `rank`, a task trains as many "parameters" as with plain adapters of the configured bottleneck
            and placement, or its matrices take as many "bytes" as the gates of a TSS task; nearly, and at least rank 1.
        alpha: the product of the two matrices is scaled by alpha / rank; None: by 1.
        targets: regular expression that must match a linear layer's full name; None: peft's defaults for this type of
            model, for most types the query and value projections.

    Raises:
        ValueError: names the option and its value.
    """

    rank: int | None = None
    match: str = "parameters"
    alpha: float | None = None
    targets: str | None = None

    def __post_init__(self) -> None:
        check_lora("LoraOptions", self.rank, self.match, self.alpha, self.targets)


class Lora(Method):
    """LoRA of Hu et al., ICLR 2022 (arXiv 2106.09685): what many would use instead of TSS; never forgets either.

    peft (`pip install 'tss[lora]'`) creates and initializes the matrices. Their learning rate is `adapter_lr`.
    """

    name = "lora"
    options_type = LoraOptions
    gated = False
    never_forgets = True

    def layer_options(self) -> PlainOptions:
        options = self.options
        return PlainOptions(
            trained="lora", rank=options.rank, match=options.match, alpha=options.alpha, targets=options.targets
        )
