"""Products of rows of many tasks in Triton: one small launch that groups the entries by task, and one for each product.

The launch configuration is a function of dtype, shape and alignment, never of the number of rows: no bit of a row
depends on the rest of its batch.
"""

from __future__ import annotations

import torch
import triton

from tss_kernels.backends.tables import Tile, kind_of, width_of
from tss_kernels.backends.tables.table import Kind, Width
from tss_kernels.backends.triton import dot_precision, launch
from tss_kernels.gated_adapter.reference import FROM_RESULT
from tss_kernels.gated_linear.triton_tiles import is_aligned, loads_numbers, pipelined
from tss_kernels.multi_task.grouped import Groups, Kernels, empty_groups, operations
from tss_kernels.multi_task.triton_kernels import (
    group_kernel,
    multi_task_forward_kernel,
    multi_task_input_grad_kernel,
)
from tss_kernels.tensors import bank_of

GROUP_BLOCK = 1024  # entries read at a time
# `out` is a program's number of result features, `inner` of summed features at a time; `inner` is the same for every
# shape, so that sums are cut alike. Few rows, because a batch may have few of each task. None spills when compiled for
# sm_80 to sm_120.
ROWS = {"half": 32, "float32": 16}
TILES: dict[tuple[Kind, Width], Tile] = {
    ("half", "narrow"): Tile(64, 64, ROWS["half"], 4, 3),
    ("half", "wide"): Tile(128, 64, ROWS["half"], 8, 3),
    ("half", "unaligned"): Tile(64, 64, ROWS["half"], 8, 2),
    ("float32", "narrow"): Tile(64, 64, ROWS["float32"], 8, 2),
    ("float32", "wide"): Tile(64, 64, ROWS["float32"], 8, 2),
    ("float32", "unaligned"): Tile(64, 64, ROWS["float32"], 8, 2),
}


def _tile(dtype: torch.dtype, summed: int, features: int, aligned: bool) -> Tile:
    tile = TILES[kind_of(dtype), width_of(features, aligned)]
    return pipelined(tile, triton.cdiv(summed, tile.inner))


def _bank_words(bank: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Return the bank as a tensor of gate words, the words from one task to the next, and the gates per word."""
    bank, task_bytes = bank_of(bank)
    flat = bank.as_strided((bank.shape[0], bank.shape[1] * bank.shape[2]), (task_bytes, 1))
    if bank.shape[2] % 4 == 0 and task_bytes % 4 == 0 and bank.storage_offset() % 4 == 0:
        return flat.view(torch.int32), task_bytes // 4, 32
    return flat, task_bytes, 8


def _group(task_ids: torch.Tensor, length: int, tasks: int, dtype: torch.dtype) -> Groups:
    task_ids, rows = task_ids.contiguous(), ROWS[kind_of(dtype)]
    groups = empty_groups(task_ids, length, tasks, rows)
    launch(
        group_kernel, tasks + 1,
        task_ids, groups.order, groups.tiles, task_ids.shape[0], length, tasks,
        ROWS=rows, BLOCK=GROUP_BLOCK, num_warps=4,
    )  # fmt: skip
    return groups


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bank: torch.Tensor,
    groups: Groups,
    bias: torch.Tensor | None,
    activation: str,
    residual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out_features, in_features = weight.shape
    weight, (gates, task_words, bits) = weight.contiguous(), _bank_words(bank)
    added = x if residual is None else residual
    y = torch.empty((x.shape[0], out_features), dtype=added.dtype, device=x.device)
    keeps_result = activation in ("", *FROM_RESULT)
    hidden = y if keeps_result else torch.empty_like(y)
    tile = _tile(x.dtype, in_features, out_features, is_aligned((in_features, out_features), x))
    launch(
        multi_task_forward_kernel, triton.cdiv(out_features, tile.out) * groups.tiles.shape[0],
        x, weight, gates, weight if bias is None else bias.contiguous(), y, hidden, added, groups.order, groups.tiles,
        groups.length, in_features, out_features, task_words, triton.cdiv(in_features, bits),
        *x.stride(), *added.stride(),
        HAS_BIAS=bias is not None, ACTIVATION=activation, KEEPS_RESULT=keeps_result, HAS_RESIDUAL=residual is not None,
        BITS=bits, LOADED=loads_numbers(tile.out, tile.warps), PRECISION=dot_precision(),
        OUT=tile.out, IN=tile.inner, ROWS=tile.rows, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y, hidden


def _product_grad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bank: torch.Tensor,
    groups: Groups,
    activation: str,
    hidden: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    out_features, in_features = weight.shape
    weight, (gates, task_words, bits) = weight.contiguous(), _bank_words(bank)
    added = dy if residual is None else residual
    dx = torch.empty((dy.shape[0], in_features), dtype=added.dtype, device=dy.device)
    tile = _tile(dy.dtype, out_features, in_features, is_aligned((in_features, out_features), dy))
    launch(
        multi_task_input_grad_kernel, triton.cdiv(in_features, tile.out) * groups.tiles.shape[0],
        dy, weight, gates, dx, dx if hidden is None else hidden, added, groups.order, groups.tiles,
        groups.length, in_features, out_features, task_words, triton.cdiv(in_features, bits),
        *dy.stride(), *added.stride(),
        ACTIVATION=activation, HAS_RESIDUAL=residual is not None,
        BITS=bits, LOADED=loads_numbers(tile.out, tile.warps), PRECISION=dot_precision(),
        OUT=tile.inner, IN=tile.out, ROWS=tile.rows, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dx


KERNELS = Kernels(_group, _product, _product_grad)
linear, linear_input_grad, adapter, adapter_input_grad = operations(KERNELS)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the products of shape (rows, in, out) run, or (rows, d, bottleneck) for the adapter."""
    del device
    _, in_features, out_features = shape
    tile = _tile(dtype, in_features, out_features, in_features % 16 == out_features % 16 == 0)
    said = f"{tile} of one task's rows, which one launch before groups by task"
    return said if op == "multi_task_linear" else f"two products, the activation inside the first: {said}"
