"""The error bound, poisoned outputs, and memory layouts of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def assert_as_exact_as_pytorch(actual: torch.Tensor, pytorch: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that the largest error is at most twice PyTorch's own in the same dtype, both against the same float64.

    PyTorch's own error counts as at least one unit in the last place of the largest value: on few elements it may be 0
    by chance, and with wide registers its sums of few products round hardly more than once.
    actual, pytorch: one shape and dtype; exact: the same shape in float64. Raises AssertionError.
    """
    assert actual.shape == pytorch.shape == exact.shape, f"{actual.shape}, {pytorch.shape}, {exact.shape}"
    assert actual.dtype == pytorch.dtype, f"{actual.dtype} is not {pytorch.dtype}"
    if exact.numel() == 0:
        return
    own = (pytorch.double() - exact).abs().max().item()
    rounding = torch.finfo(actual.dtype).eps * exact.abs().max().item()
    error = (actual.double() - exact).abs().max().item()
    bound = 2 * max(own, rounding)
    assert error <= bound, f"largest error {error:.3g} is over the bound {bound:.3g} (PyTorch's own: {own:.3g})"


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Fill every uninitialized tensor with NaN (integers with their maximum), so that unwritten elements show."""
    # In deterministic mode PyTorch fills what it allocates, unless this was turned off.
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Only warn: on a GPU, PyTorch's own products, if there are any, count as nondeterministic.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all(), "set torch.utils.deterministic.fill_uninitialized_memory = True"
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def in_layout(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a tensor of one dimension or more with the same values in the named memory layout.

    Layouts are contiguous, permuted (first dimension innermost) and sliced (every second element); "expanded" instead
    repeats its first row with stride 0.
    """
    if layout == "permuted":
        backwards = tuple(reversed(range(tensor.dim())))
        return tensor.permute(backwards).contiguous().permute(backwards)
    if layout == "sliced":
        return tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)[..., 1::2].copy_(tensor)
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    return tensor.contiguous()
