"""An operation under test: its inputs, what it returns, and what it should have returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from tss_kernels.testing.exactness import assert_as_exact_as_pytorch, in_layout

Inputs = dict[str, Any]
Results = dict[str, torch.Tensor]  # "value", and "gradient of NAME" for each trained input
Formula = Callable[[Inputs, torch.Tensor], torch.Tensor]


class CheckFailed(AssertionError):
    """An operation failed a check; the message names the check, the dtype, the shapes and the values."""


class OpUnderTest(NamedTuple):
    """The operation and the arguments of `check_op`; see there."""

    function: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    make_inputs: Callable[[int, torch.dtype, torch.Generator], Mapping[str, Any]]
    trained: tuple[str, ...]
    straight_through: Mapping[str, Formula]
    dtypes: tuple[torch.dtype, ...]
    rows: tuple[int, ...]
    operators: Sequence[tuple[torch._ops.OpOverload, tuple[Any, ...]]]
    device: torch.device
    runs: int

    def draw(self, rows: int, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Draw inputs, on the device, from a seed that depends on `seed` and `rows`."""
        made = self.make_inputs(rows, dtype, torch.Generator().manual_seed(1000 * seed + rows))
        return {name: value.to(self.device) if is_tensor(value) else value for name, value in made.items()}

    def usual(self, seed: int = 0) -> Inputs:
        """Draw inputs of the first dtype and the largest number of rows."""
        return self.draw(max(self.rows), self.dtypes[0], seed)

    def where(self, rows: int | None = None, dtype: torch.dtype | None = None) -> str:
        """Describe dtype and rows, by default those of `usual` inputs."""
        return f"{_name(dtype or self.dtypes[0])}, {max(self.rows) if rows is None else rows} rows"

    def leaves(self, inputs: Inputs) -> Inputs:
        """Return the inputs as leaf tensors on the same memory; the trained ones require a gradient."""
        return {
            name: value.detach().requires_grad_(name in self.trained) if is_tensor(value) else value
            for name, value in inputs.items()
        }

    def incoming(self, inputs: Inputs) -> torch.Tensor:
        """Draw a gradient for the result of these inputs."""
        with torch.no_grad():
            y = self.reference(**inputs)
        drawn = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return drawn.to(device=y.device, dtype=y.dtype)

    def run(self, inputs: Inputs, dy: torch.Tensor, function: Callable[..., torch.Tensor] | None = None) -> Results:
        """Return the value and gradients of the function, or of another function."""
        leaves = self.leaves(inputs)
        y = (function or self.function)(**leaves)
        if self.trained:
            y.backward(dy)
        return {"value": y.detach()} | self.gradients(leaves)

    def gradients(self, leaves: Inputs) -> Results:
        """Return the gradients of the trained leaves; assert that each has one."""
        for name in self.trained:
            assert leaves[name].grad is not None, f"no gradient of {name} arrived"
        return {f"gradient of {name}": leaves[name].grad for name in self.trained}

    def reference_results(self, inputs: Inputs, dy: torch.Tensor) -> Results:
        """Return the reference's value and gradients; formulas give those that autograd cannot compute."""
        leaves = self.leaves(inputs)
        y = self.reference(**leaves)
        if any(name not in self.straight_through for name in self.trained):
            y.backward(dy)
        with torch.no_grad():
            for name, formula in self.straight_through.items():
                if name in self.trained:
                    leaves[name].grad = formula(inputs, dy).to(inputs[name].dtype)
        return {"value": y.detach()} | self.gradients(leaves)

    def exact_results(self, inputs: Inputs, dy: torch.Tensor) -> Results:
        """Return the reference's results with every floating input in float64."""
        return self.reference_results({name: _double(value) for name, value in inputs.items()}, dy.double())

    def pytorch_results(self, inputs: Inputs, dy: torch.Tensor, exact: Results) -> Results:
        """Return the reference's results in the inputs' dtypes, each from the memory layout in which it is least exact.

        The order of sums depends on the layout by chance: a small tensor can be twice as exact in one as in another.
        """
        runs = [self.reference_results(inputs, dy)]
        for layout in ("contiguous", "permuted"):
            arranged = {name: in_layout(value, layout) if has_rows(value) else value for name, value in inputs.items()}
            runs.append(self.reference_results(arranged, in_layout(dy, layout) if dy.dim() else dy))
        return {
            name: max((run[name] for run in runs), key=lambda one: _error(one, truth)) for name, truth in exact.items()
        }

    def compare(self, actual: Results, inputs: Inputs, dy: torch.Tensor) -> None:
        """Assert that every result is within the bound of `assert_as_exact_as_pytorch`."""
        exact = self.exact_results(inputs, dy)
        pytorch = self.pytorch_results(inputs, dy, exact)
        for name, value in actual.items():
            assert_close(name, value, pytorch[name], exact[name])


def _error(one: torch.Tensor, exact: torch.Tensor) -> float:
    return (one.double() - exact).abs().max().item() if exact.numel() else 0.0


def has_rows(value: object) -> bool:
    """Return whether an input is a tensor of one dimension or more, which can have several memory layouts."""
    return isinstance(value, torch.Tensor) and value.dim() > 0


def is_tensor(value: object) -> bool:
    """Return whether an input is a tensor, not a number, a string or None."""
    return isinstance(value, torch.Tensor)


def _double(value: Any) -> Any:
    return value.double() if is_tensor(value) and value.is_floating_point() else value


def assert_close(name: str, actual: torch.Tensor, pytorch: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that one result is within the bound; the message has its worst element."""
    try:
        assert_as_exact_as_pytorch(actual, pytorch, exact)
    except AssertionError as error:
        worst = ""
        if actual.shape == exact.shape and actual.numel():
            errors = (actual.double() - exact).abs().nan_to_num(nan=float("inf"))
            at = tuple(int(index) for index in torch.unravel_index(errors.argmax(), errors.shape))
            worst = f"; worst at {at}: {actual[at].item():.6g} instead of {exact[at].item():.6g}"
        raise AssertionError(f"{name}: {error}{worst}") from error


def assert_same_bits(actual: Results, expected: Results, when: str) -> None:
    """Assert that two runs gave the same values and gradients; NaN equals NaN."""
    for name, one in expected.items():
        other = actual[name]
        assert (one.dtype, one.shape) == (other.dtype, other.shape), f"{name} {when}: another dtype or shape"
        different = (one != other) & ~(one.isnan() & other.isnan())
        if different.any():
            at = tuple(int(index) for index in different.nonzero()[0])
            raise AssertionError(
                f"{name} {when}: {int(different.sum())} of {one.numel()} elements differ, the first at {at}: "
                f"{other[at].item()!r} instead of {one[at].item()!r}"
            )


@contextmanager
def reported(check: str, where: str, inputs: Inputs) -> Iterator[None]:
    """Report any exception inside as a failure of the check, with where it happened and the inputs."""
    try:
        yield
    except Exception as error:
        shapes = ", ".join(
            f"{name} {tuple(value.shape)} {_name(value.dtype)} strides {value.stride()}"
            if is_tensor(value)
            else f"{name} = {value!r}"
            for name, value in inputs.items()
        )
        what = str(error) if type(error) is AssertionError else f"{type(error).__name__}: {error}"
        raise CheckFailed(f"check {check!r} failed, {where}: {what}\ninputs: {shapes}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
