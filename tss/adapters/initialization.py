"""Initialization of the frozen weights and the first scores of an adapter."""

from __future__ import annotations

import math

import numpy as np
import torch

from tss.adapters.config import AdapterConfig
from tss.seeding import tensor_stream
from tss_kernels import GatedAdapterLinear
from tss_kernels.modules import ACTIVATIONS, WEIGHT_STD

NODES = 64  # number of quadrature nodes: far more than these smooth functions need


def natural_share(width: int, bottleneck: int, down_scale: float, up_scale: float, activation: str = "relu") -> float:
    """Return how much an adapter changes the hidden state, relative to its norm, with half of the gates on.

    For independent random weights the mean square of a hidden unit is width / 2 * down_scale² * x² before the
    activation, and the adapter adds bottleneck / 2 * up_scale² times the mean square after the activation. For ReLU
    the result is sqrt(width * bottleneck) * down_scale * up_scale / (2 * sqrt(2)) for any size of x; for the others
    the root mean square of x is assumed to be 1.

    Args:
        width, bottleneck: sizes of the adapter.
        down_scale, up_scale: root mean square of the entries of its two weights.
        activation: relu, gelu, silu or tanh.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    units = torch.from_numpy(nodes) * down_scale * math.sqrt(width / 2)
    left = float((torch.from_numpy(weights) * ACTIVATIONS[activation](units).square()).sum() / math.sqrt(2 * math.pi))
    return up_scale * math.sqrt(bottleneck / 2 * left)


@torch.no_grad()
def draw_weights(down: GatedAdapterLinear, up: GatedAdapterLinear, site: str, config: AdapterConfig) -> None:
    """Draw the weights and the first scores of the two layers at a site, each layer from its own random stream."""
    scale = 1.0
    if config.share is not None:
        scale = config.share / natural_share(
            down.in_features, down.out_features, _size(down), _size(up), config.activation
        )
    down.reset_parameters(tensor_stream(config.seed, "adapter", f"{site}.down"))
    up.reset_parameters(tensor_stream(config.seed, "adapter", f"{site}.up"), scale=scale)
    if config.pairs:
        half = config.bottleneck // 2
        down.weight[half:] = down.weight[:half]
        up.weight[:, half:] = -up.weight[:, :half]
        pair_scores(down, up)


@torch.no_grad()
def draw_scores(down: GatedAdapterLinear, up: GatedAdapterLinear, site: str, task: str, config: AdapterConfig) -> None:
    """Draw the scores of the two layers at a site for a task."""
    for part, layer in (("down", down), ("up", up)):
        layer.reset_scores(tensor_stream(config.seed, "scores", f"{site}.{part}", task))
    if config.pairs:
        pair_scores(down, up)


@torch.no_grad()
def pair_scores(down: GatedAdapterLinear, up: GatedAdapterLinear) -> None:
    """Copy the first half of the hidden units' scores to the second half: with paired weights, the identity."""
    half = down.out_features // 2
    down.scores[half:] = down.scores[:half]
    up.scores[:, half:] = up.scores[:, :half]


def _size(layer: GatedAdapterLinear) -> float:
    """Return the root mean square with which the entries of a layer's weight are drawn."""
    return WEIGHT_STD if layer.weight_init == "normal" else math.sqrt(2 / layer.in_features)
