"""torch's default dtype, which a program may set to that of its model, changes nothing in any operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import tss_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float64)
HALF = torch.bfloat16


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float32).to(DEVICE, dtype)


def with_gradients(call: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def gated_linear(dtype: torch.dtype) -> list[torch.Tensor]:
    """Few rows with many features, which are summed in ranges, and many rows, whose score gradient is."""
    results = []
    for rows, inner, out in ((32, 1024, 64), (700, 64, 32)):
        weight = numbers(out, inner, dtype=dtype)
        results += with_gradients(
            lambda x, s, weight=weight: tss_kernels.gated_linear(x, weight, s),
            numbers(rows, inner, dtype=dtype),
            numbers(out, inner),
        )
    return results


def packed_linear(dtype: torch.dtype) -> list[torch.Tensor]:
    weight, packed = numbers(64, 1024, dtype=dtype), tss_kernels.pack_gates(numbers(64, 1024))
    return with_gradients(lambda x: tss_kernels.packed_linear(x, weight, packed), numbers(32, 1024, dtype=dtype))


def gated_adapter(dtype: torch.dtype) -> list[torch.Tensor]:
    down, up = numbers(16, 96, dtype=dtype), numbers(96, 16, dtype=dtype)
    return with_gradients(
        lambda x, s, t: tss_kernels.gated_adapter(x, down, s, up, t),
        numbers(33, 96, dtype=dtype),
        numbers(16, 96),
        numbers(96, 16),
    )


def multi_task_adapter(dtype: torch.dtype) -> list[torch.Tensor]:
    down, up = numbers(16, 96, dtype=dtype), numbers(96, 16, dtype=dtype)
    banks = [torch.stack([tss_kernels.pack_gates(sign * numbers(*w.shape)) for sign in (1, -1)]) for w in (down, up)]
    ids = torch.tensor([1, 0, 1], device=DEVICE)
    return with_gradients(
        lambda x: tss_kernels.multi_task_adapter(x, down, banks[0], up, banks[1], ids),
        numbers(3, 5, 96, dtype=dtype),
    )


def update_importance_(dtype: torch.dtype) -> list[torch.Tensor]:
    total = torch.zeros(40, 96, dtype=torch.float32, device=DEVICE)
    tss_kernels.update_importance_(total, numbers(40, 96, dtype=dtype))
    tss_kernels.accumulate_importance_(total, numbers(40, 96).abs())
    return [total, tss_kernels.normalize_importance(numbers(40, 96, dtype=dtype), per="row")]


def soft_masked_adamw_(dtype: torch.dtype) -> list[torch.Tensor]:
    param, grad = numbers(40, 96, dtype=dtype), numbers(40, 96, dtype=dtype)
    moments = [numbers(40, 96).abs() for _ in range(2)]
    tss_kernels.soft_masked_adamw_(
        [param], [grad], [moments[0]], [moments[1]], [numbers(40, 96).sigmoid()],
        step=3, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01, site="update",
    )  # fmt: skip
    return [param, *moments]


OPERATIONS = (
    gated_linear,
    packed_linear,
    gated_adapter,
    multi_task_adapter,
    update_importance_,
    soft_masked_adamw_,
)


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """torch.set_default_dtype, undone at the end."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_default_dtype_changes_no_bit(operation, dtype, backend, default_dtype):
    backend.runs(operation.__name__, dtype)
    with tss_kernels.use_backend(backend):
        expected = operation(dtype)
        for default in DTYPES:
            default_dtype(default)
            for result, before in zip(operation(dtype), expected, strict=True):
                assert result.dtype == before.dtype
                assert torch.equal(result, before), f"another result if the default is {default}"
