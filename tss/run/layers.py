"""Values of the gated layers that a run records when it seals a task; empty for plain adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tss.adapters import TssHandle


def importance_mean(handle: TssHandle) -> dict[str, float]:
    """Return the mean accumulated importance of each gated layer that has any."""
    importances = {name: getattr(layer, "importance", None) for name, layer in handle.layers.items()}
    return {name: value.mean().item() for name, value in importances.items() if value is not None}


def scores(handle: TssHandle) -> dict[str, torch.Tensor]:
    """Return copies of the live scores of each gated layer."""
    return {name: layer.scores.detach().clone() for name, layer in _gated(handle).items()}


def moved(handle: TssHandle, since: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean absolute change of each gated layer's scores from `since`, an earlier result of `scores`."""
    return {name: (layer.scores.detach() - since[name]).abs().mean().item() for name, layer in _gated(handle).items()}


def _gated(handle: TssHandle) -> dict[str, Any]:
    return dict(handle.layers) if handle.config.gated else {}
