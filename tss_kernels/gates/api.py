"""pack_gates and unpack_gates: checks and the registered operators."""

from __future__ import annotations

import torch

from tss_kernels.backends.dispatch import implementation, select
from tss_kernels.operators import implement
from tss_kernels.validation import check_floating, check_tensor, check_threshold


def _pack_gates(scores: torch.Tensor, threshold: float, backend: str) -> torch.Tensor:
    return implementation("pack_gates", backend).pack_gates(scores, threshold)


def _pack_gates_pair(
    first: torch.Tensor, second: torch.Tensor, threshold: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return implementation("pack_gates", backend).pack_gates_pair(first, second, threshold)


def _unpack_gates(packed: torch.Tensor, in_features: int, backend: str) -> torch.Tensor:
    return implementation("unpack_gates", backend).unpack_gates(packed, in_features)


_pack_gates_operator = implement("pack_gates", _pack_gates)
_pack_gates_pair_operator = implement("pack_gates_pair", _pack_gates_pair)
_unpack_gates_operator = implement("unpack_gates", _unpack_gates)


def check_pack(scores: torch.Tensor, threshold: float) -> None:
    """Check the arguments of pack_gates. Raises TypeError and ValueError."""
    check_floating("scores", scores)
    if scores.dim() != 2:
        raise ValueError(
            f"scores must be (out, in), two dimensions, but have shape {tuple(scores.shape)}: reshape them"
        )
    check_threshold(threshold)


def pack_gates(scores: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """Pack the gates scores >= threshold, one bit each: bit i of byte j is column 8 j + i, rows padded with 0.

    Args:
        scores: (out, in), of any floating dtype; NaN gives 0.
        threshold: a gate is on if its score is at least this.

    Returns:
        uint8 (out, ceil(in / 8)).

    Raises:
        TypeError, ValueError: names the argument and what it should be.
    """
    check_pack(scores, threshold)
    return _pack_gates_operator(scores.detach(), threshold, select("pack_gates", scores.device, scores.dtype))


def pack_pair(first: torch.Tensor, second: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `pack_gates` on two checked matrices on one device.

    `triton` uses one launch; `cuda` uses one if the dtypes are equal, else two.
    """
    backend = select("pack_gates", first.device, first.dtype)
    return _pack_gates_pair_operator(first.detach(), second.detach(), threshold, backend)


def check_unpack(packed: torch.Tensor, in_features: int) -> None:
    """Check the arguments of unpack_gates. Raises TypeError and ValueError."""
    check_tensor("packed gates", packed)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed gates must be uint8 but are {packed.dtype}: make them with pack_gates")
    if not isinstance(in_features, int | torch.SymInt):
        raise TypeError(f"in_features must be a whole number but is {in_features!r}, a {type(in_features).__name__}")
    if packed.dim() != 2 or in_features < 0 or packed.shape[1] != (in_features + 7) // 8:
        raise ValueError(
            f"packed gates of in_features = {in_features} must have shape (out, {(in_features + 7) // 8}) but have "
            f"{tuple(packed.shape)}: pass the in_features of the scores that they were packed from"
        )


def unpack_gates(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """Unpack the gates that `pack_gates` returns.

    Args:
        packed: uint8 (out, ceil(in_features / 8)).
        in_features: number of columns.

    Returns:
        bool (out, in_features).

    Raises:
        TypeError, ValueError: names the argument and what it should be.
    """
    check_unpack(packed, in_features)
    return _unpack_gates_operator(packed, in_features, select("unpack_gates", packed.device, packed.dtype))
