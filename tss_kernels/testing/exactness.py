"""The error bound, poisoned outputs and the layouts that a tensor can arrive in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def assert_as_exact_as_pytorch(actual: torch.Tensor, pytorch: torch.Tensor, exact: torch.Tensor) -> None:
    """The largest error is at most twice PyTorch's own in the same dtype, both against the same values in float64.

    PyTorch's own error counts as one unit in the last place of the largest value at least: on few elements it may be 0
    by luck, and where registers are wide its sums of few products round hardly more than once.
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
    """Every uninitialised tensor is filled with NaN (integers with their maximum), so that a gap in it shows."""
    # In deterministic mode PyTorch fills what it allocates, unless that was turned off.
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Only warned of: on a GPU PyTorch's own products, if there are some, count as not deterministic.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all(), "set torch.utils.deterministic.fill_uninitialized_memory = True"
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def in_layout(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The tensor, of one dimension or more, with the same values in memory as named: contiguous, permuted (the first
    dimension innermost), sliced (every second element); "expanded" repeats its first row with stride 0."""
    if layout == "permuted":
        backwards = tuple(reversed(range(tensor.dim())))
        return tensor.permute(backwards).contiguous().permute(backwards)
    if layout == "sliced":
        return tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)[..., 1::2].copy_(tensor)
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    return tensor.contiguous()
