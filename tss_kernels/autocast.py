"""Autocast for the linear operations: the tensors that a product multiplies are cast, scores and gates are not."""

from __future__ import annotations

import torch


def cast_operands(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x, weight and bias in the dtype that autocast has for x's device; unchanged where autocast is off.

    As `torch.nn.functional.linear`: float64 is left alone.
    """
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
