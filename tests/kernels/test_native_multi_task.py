"""Products of many tasks in C++: the bits of a row, on every instruction set, and planted faults that are noticed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.multi_task_cases import ACTIVATIONS, DTYPES, OPERATIONS, check, draw, run
from tests.kernels.native_kernels import INSTRUCTION_SETS, SPECIAL, assert_same_bits, instruction_set
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout

pytest.importorskip("tss_kernels.backends.native", reason="the native backend was not built", exc_type=ImportError)

import tss_kernels
from tss_kernels.multi_task import native

# PyTorch's own cancels in its left tail.
EXACT_GELU = lambda x: 0.5 * x * torch.special.erfc(-x * 0.5**0.5)  # noqa: E731
DEPTH = 64  # products that are added one after the other before the next partial sum begins


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    with instruction_set(request.param):
        yield request.param


def _fused(a: float, b: float, c: float) -> float:
    """a b + c in float64 rounded to float32 once, exact enough for numbers of few bits."""
    return float(torch.tensor(a * b + c, dtype=torch.float64).float())


def _by_the_rule(x: torch.Tensor, weight: torch.Tensor, gates: torch.Tensor) -> list[float]:
    """A row by the documented order of sums, one operation after the other."""
    y = []
    for row, gate in zip(weight.tolist(), gates.tolist(), strict=True):
        total = 0.0
        for start in range(0, len(row), DEPTH):
            partial = 0.0
            for k in range(start, min(start + DEPTH, len(row))):
                partial = _fused(float(x[k]), row[k] if gate[k] else 0.0, partial)
            total = float(torch.tensor(total + partial, dtype=torch.float64).float())
        y.append(total)
    return y


def test_sums_have_the_documented_order(isa):
    """Factors of 8 bits, whose products are exact: every addition rounds as the rule says, and only there."""
    generator = torch.Generator().manual_seed(0)

    def short(*shape: int) -> torch.Tensor:
        drawn = torch.randint(-255, 256, shape, generator=generator).float()
        return drawn * 2.0 ** torch.randint(-20, 20, shape, generator=generator)

    x, weight = short(4, 1, 300), short(9, 300)
    bank = torch.randint(0, 256, (3, 9, 38), dtype=torch.uint8, generator=generator)
    ids = torch.tensor([2, 0, 2, 1])
    y = native.linear(x, weight, bank, ids, None)
    for entry, task in enumerate(ids.tolist()):
        expected = _by_the_rule(x[entry, 0], weight, tss_kernels.unpack_gates(bank[task], 300))
        assert y[entry, 0].tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    isa=st.sampled_from(native.kernels.instruction_sets()),
    op=st.sampled_from(OPERATIONS),
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    length=st.integers(1, 7),
    features=st.tuples(st.integers(1, 300), st.integers(1, 140)),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(("contiguous", "permuted", "sliced")),
    seed=st.integers(0, 99),
)
def test_a_row_alone_has_the_bits_it_has_in_any_batch(isa, op, ids, length, features, dtype, layout, seed):
    """Row by row, not only entry by entry: neither the entry's length nor what lies beside it matters."""
    tensors = draw(ids, length, features, dtype, 5, seed)
    with instruction_set(isa), tss_kernels.use_backend("native"):
        together = run(op, tensors | {"x": in_layout(tensors["x"], layout)})
        for entry, row in ((0, 0), (len(ids) // 2, length // 2), (len(ids) - 1, length - 1)):
            alone = {
                "x": tensors["x"][entry : entry + 1, row : row + 1], "task_ids": tensors["task_ids"][entry : entry + 1]
            }  # fmt: skip
            assert torch.equal(run(op, tensors | alone)[0, 0], together[entry, row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set_gives_the_same_bits_and_a_right_value(isa, dtype):
    tensors = draw([3, 0, 3, 1] * 20, 4, (300, 70), dtype, 4)
    with tss_kernels.use_backend("native"):
        y = run("linear", tensors)
        check("adapter", {name: t[:12] if name in ("x", "task_ids") else t for name, t in tensors.items()})
        with instruction_set("portable"):
            assert_same_bits(y, run("linear", tensors))


def test_tasks_that_lie_apart_are_not_copied():
    """A bank with room for more tasks, and every second task of another, are read where they lie."""
    tensors = draw([1, 0, 1], 2, (40, 17), torch.float32, 4)
    with tss_kernels.use_backend("native"):
        for bank in (tensors["down_bank"][:2], tensors["down_bank"][1::2]):
            own = tensors | {"down_bank": bank}
            assert torch.equal(run("linear", own), run("linear", own | {"down_bank": bank.clone()}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_as_exact_as_pytorchs(isa, activation, dtype):
    """Within two units in the last place, near 0 of 2^-10; special values as in float64.

    PyTorch's own gelu of infinity is infinite or NaN, by the processor's instructions.
    """
    points = torch.linspace(-12, 12, 4001, dtype=torch.float64).to(dtype)
    special = torch.tensor([*SPECIAL, 30.0, -30.0, 750.0, -750.0], dtype=torch.float64).to(dtype)
    for before in (points, special, points[:5], points[:0]):
        actual, own = native.activate(before, activation), ACTIVATIONS[activation](before)
        exact = (EXACT_GELU if activation == "gelu" else ACTIVATIONS[activation])(before.double())
        assert torch.equal(actual.isnan(), exact.isnan())
        finite = exact.isfinite() & own.isfinite()
        if dtype == torch.float64:  # the C library's functions, which round by themselves
            assert_as_exact_as_pytorch(actual[finite], own[finite], exact[finite])
        else:
            step = torch.finfo(dtype).eps * exact[finite].abs().clamp(min=2.0**-10)
            assert ((actual.double()[finite] - exact[finite]).abs() <= 2 * step).all()
        assert torch.equal(actual[~finite].nan_to_num(7.0), exact[~finite].to(dtype).nan_to_num(7.0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_bit_of_an_activation_depends_on_the_place(isa, activation):
    before = torch.randn(2053, generator=torch.Generator().manual_seed(0))
    whole = native.activate(before, activation)
    for start, stop in ((1, 2053), (3, 8), (2040, 2053), (7, 8)):
        assert torch.equal(native.activate(before[start:stop].clone(), activation), whole[start:stop])


FAULTS = {
    "a gate of the next column": lambda bank: bank.roll(1, 2),
    "another task's gates": lambda bank: bank.roll(1, 0),
    "another row's gates": lambda bank: bank.roll(1, 1),
    "one bit": lambda bank: bank ^ torch.tensor([1, *[0] * (bank.shape[2] - 1)], dtype=torch.uint8),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("op", OPERATIONS)
def test_planted_faults_are_noticed(op, fault, monkeypatch):
    """The check that these tests are made of fails on a product that takes other gates."""
    right, tensors = native._product, draw([3, 0, 3, 1], 3, (70, 40), torch.float32, 4)

    def wrong(x, weight, bank, *rest, **options):
        return right(x, weight, FAULTS[fault](bank), *rest, **options)

    with tss_kernels.use_backend("native"):
        check(op, tensors)
        monkeypatch.setattr(native, "_product", wrong)
        with pytest.raises(AssertionError, match="largest error"):
            check(op, tensors)
