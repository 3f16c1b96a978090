"""Where adapters go, what they look like, and how a task is learned in them: frozen, checked settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

PLACEMENTS = ("feed_forward", "attention", "both")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
WEIGHT_INITS = ("normal", "signed_constant")
PRESET_NAMES = ("bart", "mbart", "t5", "bert", "roberta", "distilbert", "modernbert", "gpt2", "opt", "llama", "vit")
SOFT_MASKS = ("gradient", "update", "none")
TRAINED = ("shared", "masked", "own", "lora", "backbone")


def _check(owner: str, key: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {key} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass(frozen=True)
class AdapterConfig:
    """The adapters of one model.

    Attributes:
        bottleneck: width between the two maps of an adapter.
        activation: relu, gelu, silu or tanh, between them.
        placement: after the "feed_forward" block of every layer, after its "attention" block, or after "both".
        sites: regular expression that a module's whole name must match to get an adapter; overrides the preset.
        preset: one of `PRESET_NAMES`; None takes the one of the model's `config.model_type`.
        gated: True: frozen random weights and trained gates; False: plain trained adapters of the same shapes.
        threshold: a gate is on where its score is at least this.
        weight_init: "normal", N(0, 0.02²), or "signed_constant", sign(W) * sqrt(2 / in).
        share: how far a gated adapter moves its hidden state at the start, as a share of its norm, with half of its
            gates on: the weights of its up map are scaled to it. None keeps weights as `weight_init` draws them; with
            ReLU that is a share of 0.71 for "signed_constant", and of 0.018 for "normal" at 256 x 64.
        pairs: hidden unit i + bottleneck / 2 starts with the weights and scores of unit i, its up weights negated: the
            adapter starts as exactly the identity while every gate has a gradient.
        seed: of the weights, the first scores and the heads, each from a stream of its own.

    Raises:
        ValueError: names the setting, its value and what is allowed.
    """

    bottleneck: int = 64
    activation: str = "relu"
    placement: str = "feed_forward"
    sites: str | None = None
    preset: str | None = None
    gated: bool = True
    threshold: float = 0.0
    weight_init: str = "signed_constant"
    share: float | None = 0.35
    pairs: bool = True
    seed: int = 2021

    def __post_init__(self) -> None:
        if isinstance(self.bottleneck, bool) or not isinstance(self.bottleneck, int) or self.bottleneck < 1:
            raise ValueError(f"AdapterConfig: bottleneck must be a whole number of at least 1, got {self.bottleneck!r}")
        _check("AdapterConfig", "activation", self.activation, ACTIVATIONS)
        _check("AdapterConfig", "placement", self.placement, PLACEMENTS)
        _check("AdapterConfig", "weight_init", self.weight_init, WEIGHT_INITS)
        for key in ("gated", "pairs"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"AdapterConfig: {key} must be true or false, got {getattr(self, key)!r}")
        if self.share is not None and (
            isinstance(self.share, bool) or not isinstance(self.share, (int, float)) or not 0 < self.share < math.inf
        ):
            raise ValueError(
                f"AdapterConfig: share must be a number above 0, such as 0.35, or None, got {self.share!r}"
            )
        if self.gated and self.pairs and self.bottleneck % 2:
            raise ValueError(
                f"AdapterConfig: pairs need an even bottleneck, got {self.bottleneck}; take {self.bottleneck + 1}, or "
                "pairs=False"
            )
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not number or not math.isfinite(self.threshold):
            raise ValueError(f"AdapterConfig: threshold must be a finite number, got {self.threshold!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"AdapterConfig: seed must be a whole number, got {self.seed!r}")
        if self.preset is not None:
            _check("AdapterConfig", "preset", self.preset, PRESET_NAMES)
        if self.sites is not None:
            _check_pattern("AdapterConfig", "sites", self.sites)


@dataclass(frozen=True)
class TssOptions:
    """The choices of the method; the defaults are the paper's.

    Attributes:
        soft_mask: "gradient" scales the score gradient by (1 - importance), "update" Adam's own step; "none".
        score_copy: a later task starts from a copy of the last task's trained scores; False draws them afresh.
        importance_per: normalise importance over the whole "tensor" or over each "row".
        importance_of: mean over batches of the "signed" gradient, or of its "absolute" value.
        importance_scale: "paper" adds 1e-6 to the deviation, whatever the size of the gradients, so that a task fitted
            until they are smaller than that is hardly protected; "relative" divides them by their root mean square
            first, so that only their proportions count.

    Raises:
        ValueError: names the setting, its value and what is allowed.
    """

    soft_mask: str = "gradient"
    score_copy: bool = True
    importance_per: str = "tensor"
    importance_of: str = "signed"
    importance_scale: str = "paper"

    def __post_init__(self) -> None:
        _check("TssOptions", "soft_mask", self.soft_mask, SOFT_MASKS)
        _check("TssOptions", "importance_per", self.importance_per, ("tensor", "row"))
        _check("TssOptions", "importance_of", self.importance_of, ("signed", "absolute"))
        _check("TssOptions", "importance_scale", self.importance_scale, ("paper", "relative"))
        if not isinstance(self.score_copy, bool):
            raise ValueError(f"TssOptions: score_copy must be true or false, got {self.score_copy!r}")


@dataclass(frozen=True)
class PlainOptions(TssOptions):
    """What is trained, and what is kept of each task, without gates.

    Attributes:
        trained: the weights of the adapters, one "shared" set that every task moves; or the same "masked", each hidden
            unit by a gate between 0 and 1 that a task learns and keeps; or an adapter of each task's
            "own", kept when it is sealed; or a "lora" of each task's own beside linear maps of the backbone, in place
            of adapters, which needs the package peft; or every parameter of the "backbone", without adapters.
        soft_mask: "none", as there is nothing to mask.
        rank: of "lora"; None: the one with which it trains as many parameters as the adapters would, or nearly.
        alpha: of "lora", whose product is scaled by alpha / rank; None: by 1.
        targets: of "lora": regular expression that a linear map's whole name must match; None: what peft targets in
            models of this type.
        steepness: of "masked": a gate is sigmoid(steepness * e), e trained; while training, the slope may be smaller.

    Raises:
        ValueError: names the setting, its value and what is allowed.
    """

    soft_mask: str = "none"
    trained: str = "shared"
    rank: int | None = None
    alpha: float | None = None
    targets: str | None = None
    steepness: float = 400.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("PlainOptions", "steepness", self.steepness, 0)
        _check("PlainOptions", "soft_mask", self.soft_mask, ("none",))
        _check("PlainOptions", "trained", self.trained, TRAINED)
        check_lora("PlainOptions", self.rank, self.alpha, self.targets)


def check_above(owner: str, key: str, value: object, least: float) -> None:
    """Raise ValueError naming the option and its value unless it is a finite number greater than `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < math.inf:
        raise ValueError(f"{owner}: {key} must be a number above {least:g}, got {value!r}")


def check_lora(owner: str, rank: object, alpha: object, targets: object) -> None:
    """Raise ValueError naming the option and its value unless each is None or can be used."""
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"{owner}: rank must be a whole number of at least 1, or None, got {rank!r}")
    if alpha is not None:
        check_above(owner, "alpha", alpha, 0)
    if targets is not None:
        _check_pattern(owner, "targets", targets)


def _check_pattern(owner: str, key: str, value: Any) -> None:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(f"{owner}: {key}={value!r} is no regular expression: {error}") from error


def options_from(values: Mapping[str, Any]) -> TssOptions:
    """The options whose fields `dataclasses.asdict` gave.

    Raises:
        TypeError: they are of none.
        ValueError: one of them is not allowed.
    """
    known = {frozenset(field.name for field in fields(kind)): kind for kind in (TssOptions, PlainOptions)}
    return known.get(frozenset(values), TssOptions)(**values)
