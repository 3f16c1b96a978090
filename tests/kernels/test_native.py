"""The native kernels bit by bit: every instruction set against the reference, on any size, offset and special value."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.native_kernels import (
    DTYPES,
    INSTRUCTION_SETS,
    SPECIAL,
    assert_same_bits,
    exact_sqrt,
    instruction_set,
    random,
)

pytest.importorskip("tss_kernels.backends.native", reason="the native backend was not built", exc_type=ImportError)

from tss_kernels.adamw import native as adamw
from tss_kernels.adamw import reference as adamw_reference
from tss_kernels.backends.native import kernels
from tss_kernels.gated_linear import native as linear
from tss_kernels.gated_linear import reference as linear_reference
from tss_kernels.gates import native as gates
from tss_kernels.gates import reference as gates_reference
from tss_kernels.importance import native as importance
from tss_kernels.importance import reference as importance_reference
from tss_kernels.testing.exactness import assert_as_exact_as_pytorch, in_layout

# Where comparing in the scores' own precision matters: ties of rounding, the largest numbers, and beyond.
EDGES = (*SPECIAL, 5e-324, 1e300, 1e39, 65504, 65519.9, 65520.0, 3.3895e38, 2.98e-8, 1.00390625, 1.001953125, 0.1)
SIZES = ((0, 0), (3, 0), (0, 5), (1, 1), (5, 3), (3, 8), (2, 33), (4, 1032), (3, 1031), (1, 2500))


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    with instruction_set(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparison_at_every_edge(isa, dtype):
    if dtype.itemsize == 2:
        scores = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(256, 256)
    else:
        scores = torch.tensor(EDGES, dtype=torch.float64).to(dtype).view(1, -1)
    for threshold in EDGES:
        expected = gates_reference.pack_gates(scores, threshold)
        assert torch.equal(gates.pack_gates(scores, threshold), expected), threshold


@settings(max_examples=60, deadline=None)
@given(
    isa=st.sampled_from(kernels.instruction_sets()),
    rows=st.integers(0, 9),
    columns=st.integers(0, 70),
    offset=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(("contiguous", "permuted", "sliced")),
    threshold=st.sampled_from(EDGES),
    seed=st.integers(0, 99),
)
def test_gates_of_any_size_and_layout(isa, rows, columns, offset, dtype, layout, threshold, seed):
    scores = in_layout(random(rows, columns, dtype=dtype, offset=offset, seed=seed), layout)
    with instruction_set(isa):
        packed = gates.pack_gates(scores, threshold)
        assert torch.equal(packed, gates_reference.pack_gates(scores, threshold))
        gate = gates.unpack_gates(in_layout(packed, layout) if packed.numel() else packed, columns)
    assert gate.dtype == torch.bool
    assert torch.equal(gate, gates_reference.gates(scores, threshold))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_masked_weights(isa, dtype, offset):
    for rows, columns in SIZES:
        weight = random(rows, columns, dtype=dtype, offset=offset)
        scores = random(rows, columns, seed=1, offset=offset)
        expected = gates_reference.masked(weight, scores >= 0.5)
        packed = gates.pack_gates(scores, 0.5)
        assert_same_bits(linear.masked_by_bits(weight, packed), expected)
        x = torch.eye(columns, dtype=dtype)
        y, bits = linear.forward(x, weight.nan_to_num(0, 1, -1), scores, None, 0.5)
        assert torch.equal(bits, packed)
        assert torch.equal(y, linear_reference.forward(x, weight.nan_to_num(0, 1, -1), scores, None, 0.5)[0])


def test_an_off_entry_is_zero_and_negative_zero_stays(isa):
    weight = torch.tensor([[float("nan"), float("inf"), -0.0, -0.0, -3.0, 2.0, float("nan"), -float("inf"), -1.0]])
    packed = torch.tensor([[0b01001000, 1]], dtype=torch.uint8)
    for dtype in DTYPES:
        masked = linear.masked_by_bits(weight.to(dtype), packed)[0]
        assert masked[[3, 6, 8]].tolist()[::2] == [0.0, -1.0]
        assert masked[3].signbit()
        assert masked[6].isnan()
        off = masked[[0, 1, 2, 4, 5, 7]]
        assert off.eq(0).all()
        assert not off.signbit().any()


@pytest.mark.parametrize(("dtype", "other"), list(itertools.product(DTYPES, (None, *DTYPES))))
def test_score_gradient(isa, dtype, other):
    for rows, (out, columns) in ((0, (3, 8)), (5, (4, 33)), (33, (70, 40))):
        dy, x = random(rows, out, dtype=dtype), random(rows, columns, dtype=dtype, seed=1)
        dy, x = dy.nan_to_num(0, 1, -1), x.nan_to_num(0, 1, -1)
        weight = random(out, columns, dtype=dtype, seed=2, offset=1)
        mask = None if other is None else torch.rand(out, columns).to(other)
        expected = linear_reference.scores_grad(dy, x, weight, mask)
        assert_same_bits(linear.scores_grad(dy, x, weight, mask), expected)


DTYPE_CODES = (
    (torch.float32,) * 5,
    (torch.float16,) * 5,
    (torch.bfloat16,) * 5,
    (torch.float64,) * 5,
    (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32, torch.float16),
    (torch.float32, torch.bfloat16, torch.bfloat16, torch.float16, torch.float64),
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float32),
)


def _adamw_case(kinds: tuple[torch.dtype, ...]) -> list[list[torch.Tensor | None]]:
    shapes = ((3, 5), (1,), (0, 4), (4, 8), (3, 1031), (2, 2048), (1030,))
    lists: list[list[torch.Tensor | None]] = [
        [random(*shape, dtype=dtype, seed=i, offset=place) for i, shape in enumerate(shapes)]
        for place, dtype in enumerate(kinds)
    ]
    lists[3] = [tensor.abs() for tensor in lists[3]]  # type: ignore[union-attr]
    lists[4] = [None if i % 3 == 1 else torch.rand(shape).to(kinds[4]) for i, shape in enumerate(shapes)]
    return lists


@pytest.mark.parametrize("site", ["update", "gradient"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("kinds", DTYPE_CODES, ids=str)
def test_adamw_has_the_bits_of_the_reference(isa, kinds, weight_decay, site, monkeypatch):
    options = {
        "step": 3.0, "lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": weight_decay, "site": site
    }  # fmt: skip
    ours, theirs = _adamw_case(kinds), _adamw_case(kinds)
    torch.manual_seed(0)
    theirs[4] = ours[4]
    adamw.soft_masked_adamw_(*ours, **options)
    monkeypatch.setattr(torch.Tensor, "sqrt", exact_sqrt)
    adamw_reference.soft_masked_adamw_(*theirs, **options)
    for name, mine, specified in zip(("param", "grad", "exp_avg", "exp_avg_sq"), ours, theirs, strict=False):
        for i, (tensor, expected) in enumerate(zip(mine, specified, strict=True)):
            try:
                assert_same_bits(tensor, expected)
            except AssertionError as error:
                raise AssertionError(f"{name}[{i}]: {error}") from None


def test_adamw_counts_flips_of_ragged_rows(isa, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "sqrt", exact_sqrt)
    results = []
    for module in (adamw, adamw_reference):
        lists = [[random(*shape, seed=place) for shape in SIZES] for place in range(4)]
        lists[3] = [tensor.abs() for tensor in lists[3]]
        packed = [torch.full((rows, (columns + 7) // 8), 255, dtype=torch.uint8) for rows, columns in SIZES]
        packed[4] = None
        flips = torch.ones(2 * len(SIZES), dtype=torch.int64)[::2]
        module.soft_masked_adamw_(
            *lists, [None] * len(SIZES), step=1.0, lr=0.5, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0,
            site="update", packed=packed, thresholds=[0.1] * len(SIZES), flips=flips,
        )  # fmt: skip
        results.append((lists[0], packed, flips))
    assert torch.equal(results[0][2], results[1][2])
    assert results[0][2].sum() > 100
    for mine, expected in zip(results[0][1], results[1][1], strict=True):
        assert expected is None or torch.equal(mine, expected)


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_importance_is_as_exact_as_pytorch(isa, dtype, per):
    for scale, shift in ((1.0, 0.0), (1e-5, 0.0), (1e-3, 5.0), (100.0, 0.0)):
        for shape in ((1, 1), (3, 5), (4, 1030), (7,), (2, 3, 40), (1500, 17)):
            raw = (
                torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale + shift
            ).to(dtype)
            raw.view(-1)[0] = 3 * scale  # far out
            exact = _exact_importance(raw, per)
            ours = importance.normalize_importance(raw, per)
            assert_as_exact_as_pytorch(ours, importance_reference.normalize_importance(raw, per), exact)


def _exact_importance(raw: torch.Tensor, per: str) -> torch.Tensor:
    wide = raw.double()
    dims = (-1,) if per == "row" else tuple(range(raw.dim()))
    centred = wide - wide.mean(dims, keepdim=True)
    deviation = centred.square().mean(dims, keepdim=True).sqrt()
    return (centred / (deviation + 1e-6)).tanh().abs()


def test_importance_is_correctly_rounded_near_0_and_far_from_it(isa):
    """Rows of 0, t, -t and zeros, whose mean is 0 exactly: z = t / (t sqrt(2 / 1000) + 1e-6) from 1e-24 to 22."""
    t = torch.logspace(-30, 3, 400, dtype=torch.float64)
    raw = torch.zeros(400, 1000, dtype=torch.float64)
    raw[:, 1], raw[:, 999] = t, -t
    exact = (t / (t * (2 / 1000) ** 0.5 + 1e-6)).tanh()
    ours = importance.normalize_importance(raw, "row").double()
    assert ours[:, 2:999].eq(0).all()
    assert not ours.signbit().any()
    assert torch.equal(ours[:, 1], ours[:, 999])
    assert ((ours[:, 1] - exact) / exact).abs().max() <= torch.finfo(torch.float32).eps / 2 * 1.001
    assert ours.max() == 1


def test_equal_elements_have_no_importance_and_nan_stays_visible(isa):
    for per in ("tensor", "row"):
        assert importance.normalize_importance(torch.full((3, 1700), 0.1), per).eq(0).all()
    raw = torch.rand(3, 20)
    raw[1, 7] = torch.nan
    assert importance.normalize_importance(raw, "tensor").isnan().all()
    assert importance.normalize_importance(raw, "row").isnan().all(1).tolist() == [False, True, False]
    raw[1, 7] = torch.inf
    assert importance.normalize_importance(raw, "tensor").isnan().all()


@pytest.mark.parametrize(("dtype", "other"), list(itertools.product(DTYPES, DTYPES)))
def test_accumulation_and_update(isa, dtype, other):
    for shape in SIZES:
        total, new = random(*shape, dtype=dtype, offset=1), random(*shape, dtype=other, seed=3).flip(0)
        total = total.abs()
        expected = total.clone()
        importance_reference.accumulate_importance_(expected, new)
        accumulated = total.clone()
        importance.accumulate_importance_(accumulated, new)
        assert torch.equal(accumulated.nan_to_num(-1), expected.nan_to_num(-1))
        raw = torch.rand(shape).to(other)
        updated, specified = total.clone(), total.clone()
        importance.update_importance_(updated, raw, "row")
        importance_reference.accumulate_importance_(specified, importance.normalize_importance(raw, "row"))
        assert torch.equal(updated.nan_to_num(-1), specified.nan_to_num(-1))


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"no instruction set 'mmx' here: this processor runs .*portable"):
        kernels.use_instruction_set("mmx")


def test_the_fastest_instruction_set_is_the_default():
    """Every set is offered, the fastest first, and the default is the first."""
    names = kernels.instruction_sets()
    assert names[-1] == "portable"
    assert kernels.instruction_set() == names[0]
