"""What one measurement is: an operation at one shape, ours and its rivals, the formula that judges them, its cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from tss_kernels.backends.dispatch import use_backend
from tss_kernels.testing import assert_as_exact_as_pytorch

Inputs = dict[str, Any]
Outputs = dict[str, torch.Tensor]
Bind = Callable[[Inputs], Callable[[], Outputs]]
Role = Literal["ours", "rival", "floor"]
Judged = dict[torch.dtype, Outputs]  # a formula's outputs on one set of inputs, by the precision they end in
COMPARED = ("triton", "cuda")  # the backends of GPUs, timed side by side
PEERS = (*COMPARED, "reference")  # beside what dispatch chooses; the specification on CPUs only


class Precision(NamedTuple):
    """What a formula is computed in: its operands' dtype, and that of products that end in float32."""

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
    bind: everything that need not be repeated (an optimizer, a saved masked weight), done for these inputs; returns
    the call to time, whose outputs have the names of the case's formula.
    late: measured after the other variants of all cases, because it has to be compiled first.
    op, backend: of ours, the operation that dispatch knows, and the backend that runs it where it is not dispatch's own
    choice; where that backend cannot run, the variant is skipped. twin: the variant that is the same where dispatch
    chooses this backend. differs: of a floor, what it computes instead.
    missing: why it cannot run here. rounds_more: of a rival that rounds once more than the formula: the norm of its
    errors is judged, not each of them.
    """

    name: str
    role: Role
    bind: Bind
    late: bool = False
    op: str | None = None
    backend: str | None = None
    twin: str | None = None
    differs: str | None = None
    missing: str | None = None
    rounds_more: bool = False


def forced(backend: str, bind: Bind, t: Inputs) -> Callable[[], Outputs]:
    """What `bind` gives, made and called with every operation on one backend."""
    with use_backend(backend):
        call = bind(t)

    def by_backend() -> Outputs:
        with use_backend(backend):
            return call()

    return by_backend


def by_backends(op: str, variant: Variant) -> tuple[Variant, ...]:
    """Ours as dispatch runs it, and beside it by each backend of GPUs and by the reference."""
    return (
        replace(variant, op=op),
        *(
            replace(
                variant, name=f"{variant.name}, {backend}", bind=partial(forced, backend, variant.bind), op=op,
                backend=backend, twin=variant.name,
            )
            for backend in PEERS
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    draw: random inputs from a seed, equal for equal seeds. formula: the outputs in a given precision; it leaves its
    inputs as they are, and is neither ours nor a rival's code. cost: as counted, for the roofline. by_norm: outputs
    judged by their norm alone, because single elements may jump (a ReLU's gradient where its input is nearly 0).
    check: in the place of a formula, gives what is wrong with a variant, or None. checked: what the check
    is, in words. curve: the key of `shape` along which this case is a point of a scaling curve. sets: of inputs that
    the repeats go round. cold: with the GPU's caches flushed before each repeat.
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
    curve: str | None = None
    sets: int = 3
    cold: bool = True

    @property
    def main(self) -> str | None:
        """The name of the first of ours, to which the ratios are."""
        return next((variant.name for variant in self.variants if variant.role == "ours"), None)

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.shape.items())
        return f"{self.operation} {sizes} {str(self.dtype).removeprefix('torch.')}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Uninitialised memory is filled with NaN; products that have no deterministic form only warn."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _assert_norm(actual: torch.Tensor, own: torch.Tensor, exact: torch.Tensor) -> None:
    """The norm of the error is at most twice that of PyTorch's own, or of one rounding."""
    size = exact.norm().item()
    bound = 2 * max((own.double() - exact).norm().item(), torch.finfo(actual.dtype).eps / 2 * size)
    error = (actual.double() - exact).norm().item()
    assert error <= bound, f"the error's norm {error:.3g} is over the bound {bound:.3g} (result's norm: {size:.3g})"


def _judge(case: Case, precision: Precision, seed: int, known: Judged) -> Outputs:
    if precision.wide not in known:
        assert case.formula is not None
        with torch.no_grad():
            known[precision.wide] = case.formula(case.draw(seed), precision)
    return known[precision.wide]


def failure_of(case: Case, variant: Variant, seed: int, known: Judged | None = None) -> str | None:
    """What is wrong with a variant's outputs on fresh inputs, or None: every output against the formula in float64.

    An error may be at most twice that of the same formula in PyTorch in the case's dtype. Ours is held to the formula
    whose float32 results are computed in float32; a rival may round its products to the dtype, as PyTorch does.
    known: what the formula gave for this seed already, for the case's next variant.
    """
    if case.check is not None:
        return case.check(variant)
    known = {} if known is None else known
    wide = torch.promote_types(case.dtype, torch.float32) if variant.role == "ours" else case.dtype
    exact = _judge(case, EXACT, seed, known)
    own = _judge(case, Precision(case.dtype, wide), seed, known)
    # A rival would only be compiled twice, once for each mode.
    with poisoned() if variant.role == "ours" else nullcontext():
        actual = variant.bind(case.draw(seed))()
    if actual.keys() != exact.keys():
        return f"gives {', '.join(actual)} where {', '.join(exact)} were expected"
    for name, reference in exact.items():
        found = actual[name].detach()
        if found.shape != reference.shape or found.dtype != own[name].dtype:
            return f"{name}: {found.dtype} {tuple(found.shape)}, not {own[name].dtype} {tuple(reference.shape)}"
        if not found.dtype.is_floating_point:
            if not torch.equal(found, reference.to(found.dtype)):
                return f"{name}: not equal"
            continue
        try:
            if name not in case.by_norm and not variant.rounds_more:
                assert_as_exact_as_pytorch(found, own[name], reference)
            _assert_norm(found, own[name], reference)
        except AssertionError as error:
            return f"{name}: {error}"
    return None
