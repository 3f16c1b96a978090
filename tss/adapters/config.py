"""Settings of adapters and of training, validated and immutable."""

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
IMPORTANCE_OF = ("signed", "absolute", "squared")
TRAINED = ("shared", "masked", "own", "lora", "backbone")
SHARED_BY_TASKS = ("shared", "masked", "backbone")
"""Choices of `PlainOptions.trained` with which all tasks rely on the same trained weights."""


def _check(owner: str, key: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {key} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of the adapters.

    Attributes:
        bottleneck: size of the adapter's hidden layer.
        activation: activation of the hidden layer: relu, gelu, silu or tanh.
        placement: after the "feed_forward" block of every layer, after its "attention" block, or after "both".
        sites: regular expression that matches the full names of the modules that get an adapter; overrides the preset.
        preset: one of `PRESET_NAMES`; None uses the one for the model's `config.model_type`.
        gated: True for frozen random weights with trained gates, False for trained weights of the same shapes.
        threshold: a gate is on if its score is at least this.
        weight_init: "normal", N(0, 0.02²), or "signed_constant", sign(W) * sqrt(2 / in).
        share: how much an untrained adapter changes the hidden state, relative to its norm, with half of the gates on.
            The up weights are scaled accordingly. None keeps the scale of `weight_init`, with ReLU a share of 0.71 for
            "signed_constant", and of 0.018 for "normal" at 256 x 64.
        pairs: initialize hidden unit i + bottleneck / 2 with the weights and scores of unit i and negated up weights:
            the adapter starts as the identity, while all scores have gradients.
        seed: seed of the weights, the first scores and the heads, which use separate random streams.

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
                f"AdapterConfig: pairs need an even bottleneck, got {self.bottleneck}; use {self.bottleneck + 1}, or "
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
    """Options of the method; the defaults follow the paper.

    Attributes:
        soft_mask: multiply the scores' "gradient" or their "update" (Adam's step) by (1 - importance), or "none".
        score_copy: start a later task from the last trained scores; False draws new scores.
        importance_per: normalize importance per "tensor" or per "row".
        importance_of: mean over batches of the "signed" gradient, of its "absolute" value, or of its square ("squared",
            the diagonal of the empirical Fisher information of batches).
        importance_scale: "paper" adds 1e-6 to the standard deviation, so that importance vanishes if a task is fitted
            until its gradients are smaller than that; "relative" first divides by their root mean square.

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
        _check("TssOptions", "importance_of", self.importance_of, IMPORTANCE_OF)
        _check("TssOptions", "importance_scale", self.importance_scale, ("paper", "relative"))
        if not isinstance(self.score_copy, bool):
            raise ValueError(f"TssOptions: score_copy must be true or false, got {self.score_copy!r}")


@dataclass(frozen=True)
class PlainOptions(TssOptions):
    """Options of the baselines, which have no gates.

    Attributes:
        trained: "shared": adapter weights that all tasks train; "masked": the same, with a trained gate between 0 and 1
            per task and hidden unit; "own": an adapter for each task; "lora": a LoRA for each task instead of adapters
            (needs peft); "backbone": all parameters of the backbone, without adapters.
        soft_mask: must be "none".
        rank: rank of "lora"; None: see `match`.
        match: without `rank`, a "lora" has as many trained "parameters" as plain adapters would have, or takes as many
            "bytes" as the gates of gated ones; nearly, and at least rank 1.
        alpha: scale of "lora", whose product is multiplied by alpha / rank; None: 1.
        targets: for "lora", regular expression that matches the full names of linear layers; None: peft's defaults for
            the type of model.
        steepness: for "masked", a gate is sigmoid(steepness * e) with e trained; the slope may be smaller in training.

    Raises:
        ValueError: names the setting, its value and what is allowed.
    """

    soft_mask: str = "none"
    trained: str = "shared"
    rank: int | None = None
    match: str = "parameters"
    alpha: float | None = None
    targets: str | None = None
    steepness: float = 400.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("PlainOptions", "steepness", self.steepness, 0)
        _check("PlainOptions", "soft_mask", self.soft_mask, ("none",))
        _check("PlainOptions", "trained", self.trained, TRAINED)
        check_lora("PlainOptions", self.rank, self.match, self.alpha, self.targets)


def check_above(owner: str, key: str, value: object, least: float) -> None:
    """Raise ValueError naming the option and its value unless it is a finite number greater than `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < math.inf:
        raise ValueError(f"{owner}: {key} must be a number above {least:g}, got {value!r}")


def check_lora(owner: str, rank: object, match: Any, alpha: object, targets: object) -> None:
    """Raise ValueError naming the option and its value unless each is None or can be used."""
    _check(owner, "match", match, ("parameters", "bytes"))
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
        raise ValueError(f"{owner}: {key}={value!r} is not a valid regular expression: {error}") from error


def options_from(values: Mapping[str, Any]) -> TssOptions:
    """The options whose fields `dataclasses.asdict` gave.

    Raises:
        TypeError: they are of none.
        ValueError: one of them is not allowed.
    """
    known = {frozenset(field.name for field in fields(kind)): kind for kind in (TssOptions, PlainOptions)}
    return known.get(frozenset(values), TssOptions)(**values)
