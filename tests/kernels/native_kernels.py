"""What the tests of the native backend share: instruction sets, numbers of threads, and bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INSTRUCTION_SETS = ("portable", "avx2", "avx512")
SPECIAL = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, -1e-40, 6e-8, -6e-8, 1.0, -1.0)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The kernels of one instruction set in use; skips where this processor cannot run them."""
    from tss_kernels.backends.native import kernels

    if name not in kernels.instruction_sets():
        pytest.skip(f"this processor does not run {name}")
    before = kernels.instruction_set()
    kernels.use_instruction_set(name)
    try:
        yield
    finally:
        kernels.use_instruction_set(before)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """PyTorch's number of threads, which the kernels follow."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, offset: int = 0) -> torch.Tensor:
    """Normal numbers with special ones among them, starting `offset` elements into their memory."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    values[::7] = torch.tensor(SPECIAL, dtype=torch.float64).repeat(count)[: len(values[::7])]
    room = torch.empty(offset + count, dtype=dtype)
    return room[offset:].copy_(values).view(shape)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal dtypes, shapes and bits, except that one NaN is as good as another."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    numbers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    if actual.dtype.is_floating_point:
        assert torch.equal(actual.isnan(), expected.isnan())
        word = numbers[actual.itemsize]
        actual, expected = (
            tensor.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf) for tensor in (actual, expected)
        )
        actual, expected = actual.contiguous().view(word), expected.contiguous().view(word)
    assert torch.equal(actual, expected), f"{int((actual != expected).sum())} of {actual.numel()} differ"


def exact_sqrt(values: torch.Tensor) -> torch.Tensor:
    """The correctly rounded root, which torch.sqrt's is not on every CPU."""
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.sqrt(values.numpy()))
