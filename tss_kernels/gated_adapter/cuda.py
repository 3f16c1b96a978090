"""The gated adapter in CUDA C++ (csrc/cuda/gated_adapter.cuh): forward pass and input gradient in one kernel each.

What runs is a function only of dtypes, shape and alignment; if one kernel does not pay, two products run one after the
other. Every sum has a fixed order, so equal inputs give equal bits.
"""

from __future__ import annotations

import torch

from tss_kernels.backends.cuda import kernels, target
from tss_kernels.backends.tables.cuda_adapter import AdapterTile, tile_for
from tss_kernels.gated_adapter import reference
from tss_kernels.gated_linear import cuda as products
from tss_kernels.tensors import ACTIVATION_CODES, DTYPE_CODES, address


def _tile(x: torch.Tensor, down_weight: torch.Tensor) -> AdapterTile | None:
    """Return the tile for x or dy (rows, d) and the down weight (bottleneck, d)."""
    (rows, features), bottleneck = x.shape, down_weight.shape[0]
    return tile_for(x.dtype, down_weight.dtype, rows, features, bottleneck, products.is_aligned(x, down_weight))[0]


def _launch(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    down_bias: torch.Tensor | None,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    up_bias: torch.Tensor | None,
    result: torch.Tensor | None,
    hidden: torch.Tensor,
    d_hidden: torch.Tensor | None,
    activation: str,
    tile: AdapterTile,
) -> None:
    # The contiguous copies must stay alive until the launch.
    down_weight, down_packed = down_weight.contiguous(), down_packed.contiguous()
    up_weight, up_packed = up_weight.contiguous(), up_packed.contiguous()
    down_bias, up_bias = (None if bias is None else bias.contiguous() for bias in (down_bias, up_bias))
    kernels(x.device).gated_adapter(
        x.data_ptr(), x.shape[0], *x.stride(), x.dtype != down_weight.dtype,
        down_weight.data_ptr(), down_packed.data_ptr(), address(down_bias),
        up_weight.data_ptr(), up_packed.data_ptr(), address(up_bias),
        x.shape[1], down_weight.shape[0], address(result), hidden.data_ptr(), address(d_hidden),
        ACTIVATION_CODES[activation], tile.number, DTYPE_CODES[down_weight.dtype], *target(x.device),
    )  # fmt: skip


def forward(
    x: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    down_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
    tile: AdapterTile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and hidden as `reference.forward` does; x (rows, d) with any strides; tile: None uses the table's."""
    tile = _tile(x, down_weight) if tile is None else tile
    if tile is None:
        return reference.forward(
            x, down_weight, down_packed, up_weight, up_packed, down_bias, up_bias, activation, products.packed_linear
        )
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    hidden = torch.empty((x.shape[0], down_weight.shape[0]), dtype=down_weight.dtype, device=x.device)
    _launch(
        x, down_weight, down_packed, down_bias, up_weight, up_packed, up_bias, y, hidden, None, activation, tile
    )  # fmt: skip
    return y, hidden


def input_grad(
    dy: torch.Tensor,
    hidden: torch.Tensor,
    down_weight: torch.Tensor,
    down_packed: torch.Tensor,
    up_weight: torch.Tensor,
    up_packed: torch.Tensor,
    activation: str,
    for_x: bool,
    tile: AdapterTile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dx and d_hidden as `reference.input_grad` does; dy (rows, d) with any strides; tile as for `forward`."""
    tile = _tile(dy, down_weight) if tile is None else tile
    if tile is None:
        return reference.input_grad(
            dy, hidden, down_weight, down_packed, up_weight, up_packed, activation, for_x, products.input_grad
        )
    hidden = hidden.contiguous()
    dx = torch.empty((dy.shape[0] if for_x else 0, dy.shape[1]), dtype=dy.dtype, device=dy.device)
    d_hidden = torch.empty_like(hidden)
    _launch(
        dy, down_weight, down_packed, None, up_weight, up_packed, None, dx if for_x else None, hidden, d_hidden,
        activation, tile,
    )  # fmt: skip
    return dx, d_hidden


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the adapter of shape (rows, d, bottleneck) runs without autocast, and why."""
    del op, device
    rows, features, bottleneck = shape
    tile, why = tile_for(dtype, dtype, rows, features, bottleneck, features % products.CHUNK == 0)
    how = "two packed_linear around the activation" if tile is None else f"{tile.name} blocks of {tile.rows} rows"
    return f"{how}; {why}"
