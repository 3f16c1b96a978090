"""AdamW, importance and gates in CUDA C++: hundreds of tensors, odd addresses, and threads in two orders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tss_kernels
from tests.kernels.native_kernels import exact_sqrt
from tss_kernels.gates import reference as gates
from tss_kernels.testing import poisoned_outputs

HYPER = {"step": 3, "lr": 3e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _on_cuda(cuda_kernels):
    with tss_kernels.use_backend("cuda"):
        yield


def parameters(shapes: list[tuple[int, ...]], offset: int = 0, dtype: torch.dtype = torch.float32) -> list[list]:
    """Five lists of tensors, each of which starts so many elements into its memory."""
    generator = torch.Generator().manual_seed(0)

    def each(draw) -> list[torch.Tensor]:
        found = []
        for shape in shapes:
            count = torch.Size(shape).numel()
            room = torch.zeros(offset + count, dtype=dtype, device=DEVICE)
            found.append(room[offset:].copy_(draw(count, generator=generator).to(DEVICE)).view(shape))
        return found

    importances = each(torch.rand)
    importances[::3] = [None] * len(importances[::3])
    return [each(torch.randn), each(torch.randn), each(torch.randn), each(torch.rand), importances]


def step(values: list[list], backend: str, site: str = "update") -> list[torch.Tensor]:
    """All that one step changes, from copies in the same layout."""
    with tss_kernels.use_backend(backend), exact_roots():
        tss_kernels.soft_masked_adamw_(*values, **HYPER, site=site)  # type: ignore[arg-type]
    return [*values[0], *values[2], *values[3]]


@contextmanager
def exact_roots() -> Iterator[None]:
    """PyTorch's root rounded correctly, which it is not on every CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setattr(torch.Tensor, "sqrt", exact_sqrt)
        yield


def assert_as_the_reference(changed: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Bit for bit; on a GPU but for a rounding: to divide by a number, PyTorch multiplies by its inverse there."""
    for one, other in zip(changed, expected, strict=True):
        if DEVICE.type == "cpu":
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=2 * torch.finfo(one.dtype).eps, atol=1e-8)


@pytest.mark.parametrize("count", [60, 61, 500, 501, 1050])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_tensors_than_one_launch_describes(count, dtype):
    shapes = [(1 + i % 3, 1 + i % 5) for i in range(count)]
    shapes[:: count // 3] = [(0,)] * len(shapes[:: count // 3])
    expected = step(parameters(shapes, dtype=dtype), "reference")
    assert_as_the_reference(step(parameters(shapes, dtype=dtype), "cuda"), expected)


@pytest.mark.parametrize("count", [60, 501, 1050])
def test_each_tensor_reads_its_own_step_on_the_device(count):
    """More than fit in a launch, some empty, half of them in another dtype and so in another launch."""
    shapes = [(1 + i % 7,) for i in range(count)]
    shapes[:: count // 3] = [(0,)] * len(shapes[:: count // 3])
    values, expected = parameters(shapes), parameters(shapes)
    for lists in (values, expected):
        lists[1][::2] = [grad.bfloat16() for grad in lists[1][::2]]
    options = {name: value for name, value in HYPER.items() if name not in ("step", "lr")}
    dtypes = (torch.float32, torch.int64, torch.float64)
    for lists, backend in ((values, "cuda"), (expected, "reference")):
        steps = [torch.tensor(1 + i % 11, dtype=dtypes[i % 3], device=DEVICE) for i in range(count)]
        with tss_kernels.use_backend(backend):
            rate = torch.tensor(0.25, device=DEVICE)
            tss_kernels.soft_masked_adamw_(*lists, step=steps, lr=rate, **options)  # type: ignore[arg-type]
    for one, other in zip(values[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    offset=st.integers(0, 5),
    site=st.sampled_from(["update", "gradient"]),
)
def test_any_size_and_start(shape, offset, site):
    values, expected = parameters([shape, shape], offset), parameters([shape, shape], offset)
    with tss_kernels.use_backend("cuda"):
        changed = step(values, "cuda", site)
    assert_as_the_reference(changed, step(expected, "reference", site))


def test_threads_in_two_orders_give_the_same_bits(monkeypatch):
    if DEVICE.type == "cuda":
        pytest.skip("a GPU's threads have no order to choose")
    results = []
    for order in ("forward", "reverse"):
        monkeypatch.setenv("TSS_EMULATED_ORDER", order)
        values = parameters([(33, 21), (5, 64)])
        changed = step(values, "cuda")
        before = [tensor.clone() for tensor in changed]
        options = {name: value for name, value in HYPER.items() if name not in ("step", "lr")}
        numbers = {"step": torch.tensor(3.0), "lr": torch.tensor(0.25)}
        tss_kernels.soft_masked_adamw_(*values, **numbers, **options)  # type: ignore[arg-type]
        raw = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
        importance = [tss_kernels.normalize_importance(raw, per=per) for per in ("tensor", "row")]
        results.append([*changed, *before, *importance])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 700)),
    offset=st.integers(0, 3),
    per=st.sampled_from(["row", "tensor"]),
)
def test_importance_of_any_size_and_start(shape, offset, per):
    room = torch.randn(offset + shape[0] * shape[1], generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)
    raw = room[offset:].view(shape)
    with tss_kernels.use_backend("cuda"), poisoned_outputs():
        importance = tss_kernels.normalize_importance(raw, per=per)
    with tss_kernels.use_backend("reference"):
        exact = tss_kernels.normalize_importance(raw.double(), per=per)
    torch.testing.assert_close(importance, exact, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("size", [5, 700, 5000])
def test_a_deviation_too_large_for_float64_makes_no_nan(size):
    """What is finite and merely too far apart is not wrong: nothing is important then, as in the reference."""
    raw = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 1e200
    for per in ("tensor", "row"):
        assert (tss_kernels.normalize_importance(raw, per=per) == 0).all()


@pytest.mark.parametrize("size", [2000, 200_000])
def test_a_first_element_far_from_all_others_costs_no_digits(size):
    """Elements are taken relative to the first of their group."""
    raw = torch.randn(1, size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    raw[0, 0] = 1e4
    importance = tss_kernels.normalize_importance(raw, per="tensor")
    with tss_kernels.use_backend("reference"):
        exact = tss_kernels.normalize_importance(raw.double(), per="tensor")
    torch.testing.assert_close(importance, exact, rtol=1.3e-7, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 20), st.integers(0, 70)),
    offset=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_masks_of_any_size_and_start(shape, offset, dtype):
    from tss_kernels.gated_linear.cuda import masked_weight

    count = shape[0] * shape[1]
    weight = torch.randn(offset + count).to(DEVICE, dtype)[offset:].view(shape)
    scores = torch.randn(offset + count).to(DEVICE)[offset:].view(shape)
    packed = torch.full((shape[0], (shape[1] + 7) // 8), 255, dtype=torch.uint8, device=DEVICE)
    with poisoned_outputs():
        by_scores = masked_weight(weight, packed, scores, 0.25)
        by_bits = masked_weight(weight, packed)
    assert torch.equal(packed, gates.pack(scores >= 0.25))
    assert torch.equal(by_scores, gates.masked(weight, scores >= 0.25))
    assert torch.equal(by_bits, by_scores)
    assert torch.equal(tss_kernels.unpack_gates(packed, shape[1]), scores >= 0.25)
