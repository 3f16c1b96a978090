"""Products of rows of many tasks in CUDA C++ (csrc/cuda/multi_task.cu).

One small launch groups the entries by task, and each product is one more launch. What runs is a function of dtype,
shape and alignment, never of the number of rows: no bit of a row depends on the rest of its batch.
"""

from __future__ import annotations

import torch

from tss_kernels.backends.cuda import kernels, target
from tss_kernels.backends.tables.cuda import FLOAT32, GENERAL, SMALL
from tss_kernels.gated_adapter.reference import FROM_RESULT
from tss_kernels.gated_linear.cuda import CHUNK, is_aligned
from tss_kernels.multi_task.grouped import Groups, Kernels, empty_groups, operations
from tss_kernels.tensors import ACTIVATION_CODES, DTYPE_CODES, address, bank_of


def _group(task_ids: torch.Tensor, length: int, tasks: int, dtype: torch.dtype) -> Groups:
    task_ids, device, code = task_ids.contiguous(), task_ids.device, DTYPE_CODES[dtype]
    module = kernels(device)
    groups = empty_groups(task_ids, length, tasks, module.group_tile_rows(code))
    module.group_by_task(
        task_ids.data_ptr(), task_ids.shape[0], length, tasks, groups.order.data_ptr(), groups.tiles.data_ptr(), code,
        *target(device),
    )  # fmt: skip
    return groups


def _launch(
    activations: torch.Tensor,
    weight: torch.Tensor,
    bank: torch.Tensor,
    groups: Groups,
    bias: torch.Tensor | None,
    transposed: bool,
    activation: str,
    hidden: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    device, dtype = activations.device, weight.dtype
    # The contiguous copies must stay alive until the launch.
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    bank, task_bytes = bank_of(bank)
    result_dtype = dtype if residual is None else residual.dtype
    result = torch.empty(
        (activations.shape[0], weight.shape[1 if transposed else 0]), dtype=result_dtype, device=device
    )
    kernels(device).multi_task_product(
        activations.data_ptr(), *activations.stride(), weight.data_ptr(), *weight.shape, bank.data_ptr(), task_bytes,
        address(bias), result.data_ptr(), transposed, is_aligned(activations, weight),
        ACTIVATION_CODES.get(activation, -1), address(hidden), address(residual),
        *((0, 0) if residual is None else residual.stride()), result_dtype != dtype,
        groups.order.data_ptr(), groups.tiles.data_ptr(), groups.tiles.shape[0], groups.length, DTYPE_CODES[dtype],
        *target(device),
    )  # fmt: skip
    return result


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bank: torch.Tensor,
    groups: Groups,
    bias: torch.Tensor | None,
    activation: str,
    residual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if activation in ("", *FROM_RESULT):
        y = _launch(x, weight, bank, groups, bias, False, activation, None, residual)
        return y, y
    hidden = torch.empty((x.shape[0], weight.shape[0]), dtype=weight.dtype, device=x.device)
    return _launch(x, weight, bank, groups, bias, False, activation, hidden, residual), hidden


def _product_grad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bank: torch.Tensor,
    groups: Groups,
    activation: str,
    hidden: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    return _launch(dy, weight, bank, groups, None, True, activation, hidden, residual)


KERNELS = Kernels(_group, _product, _product_grad)
linear, linear_input_grad, adapter, adapter_input_grad = operations(KERNELS)


def configuration(op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Describe how the products of shape (rows, in, out) run, or (rows, d, bottleneck) for the adapter."""
    del device
    _, in_features, _ = shape
    tiling = FLOAT32 if dtype == torch.float32 else SMALL if in_features % CHUNK == 0 else GENERAL
    block = f"{tiling.name} blocks of {tiling.features} features x {tiling.rows} rows of one task"
    said = f"{block}, which one launch before groups by task"
    return said if op == "multi_task_linear" else f"two products, the activation inside the first: {said}"
