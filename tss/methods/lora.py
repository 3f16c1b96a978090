"""LoRA: a low-rank adaptation of its own for every task, made by the package peft; nothing is shared."""

from __future__ import annotations

from dataclasses import dataclass

from tss.adapters.config import PlainOptions, check_lora
from tss.methods.base import Method


@dataclass(frozen=True)
class LoraOptions:
    """What one LoRA per task has to choose.

    Attributes:
        rank: None: the one with which a task trains as many parameters as in plain adapters of the configured
            bottleneck and places, or nearly.
        alpha: the product of the two matrices is scaled by alpha / rank; None: by 1.
        targets: regular expression that a linear map's whole name must match; None: what peft targets in models of this
            type, for most the query and value projections.

    Raises:
        ValueError: names the option and its value.
    """

    rank: int | None = None
    alpha: float | None = None
    targets: str | None = None

    def __post_init__(self) -> None:
        check_lora("LoraOptions", self.rank, self.alpha, self.targets)


class Lora(Method):
    """Hu et al., ICLR 2022 (arXiv 2106.09685): what many would do instead of TSS, and never forgets either.

    peft (`pip install 'tss[lora]'`) makes and initialises the matrices. They learn with `adapter_lr`.
    """

    name = "lora"
    options_type = LoraOptions
    gated = False
    never_forgets = True

    def layer_options(self) -> PlainOptions:
        options = self.options
        return PlainOptions(trained="lora", rank=options.rank, alpha=options.alpha, targets=options.targets)
