"""One measurement: an operation at one shape, TSS's variant and its rivals, the formula that checks them, its cost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from tss_kernels import Explanation, use_backend
from tss_kernels.testing import assert_as_exact_as_pytorch, poisoned_outputs

Inputs = dict[str, Any]
Outputs = dict[str, torch.Tensor]
Bind = Callable[[Inputs], Callable[[], Outputs]]
Role = Literal["ours", "rival", "floor"]
References = dict[torch.dtype, Outputs]  # a formula's outputs on one set of inputs, by Precision.wide
# Measured in addition to the backend that is chosen by default.
PEERS = {"cuda": ("triton", "cuda"), "cpu": ("native", "reference")}
SEED = 100  # for the inputs of checks; timed inputs use smaller seeds


class Precision(NamedTuple):
    """Precision of a formula: the dtype of its operands, and that of products whose result is float32."""

    dtype: torch.dtype
    wide: torch.dtype


EXACT = Precision(torch.float64, torch.float64)


class Cost(NamedTuple):
    """Bytes that must move if everything is read and written once, and operations of the products."""

    bytes: int
    flops: int


UNCOUNTED = Cost(0, 0)


@dataclass(frozen=True)
class Variant:
    """One way to compute a case.

    name, role: "ours"; a "rival" computes the same and is checked too; a "floor" computes less and is only timed.
    bind: does for these inputs everything that need not be repeated (an optimizer, a saved masked weight); returns the
    call to time, whose outputs have the names of the case's formula.
    backend: for "ours", the backend that runs it; if that cannot run, the variant is skipped.
    differs: for a floor, what it computes instead. missing: why it cannot run here.
    rounds_more: for a rival that rounds once more than the formula: the norm of its errors is checked, not each error.
    """

    name: str
    role: Role
    bind: Bind
    backend: str | None = None
    differs: str = "it computes less"
    missing: str | None = None
    rounds_more: bool = False


def _forced(backend: str, bind: Bind, t: Inputs) -> Callable[[], Outputs]:
    """Bind with every operation on one backend; return a call that also runs on it."""
    with use_backend(backend):
        call = bind(t)

    def by_backend() -> Outputs:
        with use_backend(backend):
            return call()

    return by_backend


def by_backend(backend: str, variant: Variant) -> Variant:
    """Return the variant with every operation on one backend."""
    bind = partial(_forced, backend, variant.bind)
    return replace(variant, name=f"{variant.name}, {backend}", bind=bind, backend=backend)


def by_backends(told: Explanation, device: torch.device, variant: Variant) -> tuple[Variant, ...]:
    """Return ours as it runs by default (on the backend in `told`), then on the other backends of the device."""
    others = [peer for peer in PEERS[device.type] if peer != told.backend]
    return replace(variant, backend=told.backend), *(by_backend(peer, variant) for peer in others)


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    draw: random inputs from a seed, equal for equal seeds. formula: the outputs in a given precision; it does not
    change its inputs, and is neither our code nor a rival's. cost: as counted, for the roofline. by_norm: outputs
    checked only by their norm, because single elements may jump (a ReLU's gradient if its input is nearly 0).
    check: instead of a formula, returns what is wrong with a variant, or None. checked: the check in words.
    sets: number of input sets that the repeats cycle through. cold: flush the GPU's caches before each repeat.
    """

    operation: str
    shape: dict[str, int]
    dtype: torch.dtype
    draw: Callable[[int], Inputs]
    formula: Callable[[Inputs, Precision], Outputs] | None
    variants: tuple[Variant, ...]
    cost: Cost = UNCOUNTED
    by_norm: frozenset[str] = frozenset()
    check: Callable[[Variant], str | None] | None = None
    checked: str = "float64: error at most twice PyTorch's own"
    sets: int = 3
    cold: bool = True

    @property
    def dtype_name(self) -> str:
        """Name of the dtype without "torch."."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return " ".join([self.operation, *(f"{name}={size}" for name, size in self.shape.items()), self.dtype_name])


def _assert_norm(actual: torch.Tensor, own: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that the norm of the error is at most twice that of PyTorch's own, or of one rounding."""
    size = exact.norm().item()
    bound = 2 * max((own.double() - exact).norm().item(), torch.finfo(actual.dtype).eps / 2 * size)
    error = (actual.double() - exact).norm().item()
    assert error <= bound, f"the error's norm {error:.3g} is over the bound {bound:.3g} (result's norm: {size:.3g})"


def _reference(case: Case, precision: Precision, known: References) -> Outputs:
    if precision.wide not in known:
        assert case.formula is not None
        with torch.no_grad():
            known[precision.wide] = case.formula(case.draw(SEED), precision)
    return known[precision.wide]


def failure_of(case: Case, variant: Variant, known: References | None = None) -> str | None:
    """Return what is wrong with a variant's outputs on fresh inputs, or None; compares with the formula in float64.

    An error may be at most twice that of the same formula in PyTorch in the case's dtype. Ours is compared with the
    formula whose float32 results are computed in float32; a rival may round its products to the dtype, as PyTorch does.
    known: caches the formula's outputs for the case's next variant.
    """
    if case.check is not None:
        return case.check(variant)
    known = {} if known is None else known
    wide = torch.promote_types(case.dtype, torch.float32) if variant.role == "ours" else case.dtype
    exact, own = _reference(case, EXACT, known), _reference(case, Precision(case.dtype, wide), known)
    # Not for rivals, which would only be compiled twice, once for each mode.
    with poisoned_outputs() if variant.role == "ours" else nullcontext():
        actual = variant.bind(case.draw(SEED))()
    if actual.keys() != exact.keys():
        return f"returns {', '.join(actual)} where {', '.join(exact)} were expected"
    elementwise = not variant.rounds_more
    found = (
        _wrong(name, actual[name].detach(), own[name], exact[name], elementwise and name not in case.by_norm)
        for name in exact
    )
    return next((wrong for wrong in found if wrong is not None), None)


def _wrong(name: str, found: torch.Tensor, own: torch.Tensor, exact: torch.Tensor, elementwise: bool) -> str | None:
    if found.shape != exact.shape or found.dtype != own.dtype:
        return f"{name}: {found.dtype} {tuple(found.shape)}, not {own.dtype} {tuple(exact.shape)}"
    if not found.dtype.is_floating_point:
        return None if torch.equal(found, exact.to(found.dtype)) else f"{name}: not equal"
    try:
        if elementwise:
            assert_as_exact_as_pytorch(found, own, exact)
        _assert_norm(found, own, exact)
    except AssertionError as error:
        return f"{name}: {error}"
    return None
