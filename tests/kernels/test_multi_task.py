"""Products of rows of many tasks on every backend that runs here: against float64, and each entry's bits alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tss_kernels
from tests.kernels.multi_task_cases import ACTIVATIONS, DTYPES, OPERATIONS, check, draw, on, run, single
from tss_kernels.backends.registry import BACKENDS, why_not
from tss_kernels.testing import in_layout, poisoned_outputs

# ids, length, (in, out), tasks: no rows of either kind, single elements, bytes and words of gates, several tiles,
# repeated and absent tasks, one task, empty dimensions
SHAPES = [
    ([], 3, (9, 5), 2), ([1, 0], 0, (9, 5), 2), ([], 1, (9, 5), 0), ([0], 1, (1, 1), 1), ([0, 0, 0], 2, (33, 7), 1),
    ([3, 0, 3, 6, 0], 3, (70, 65), 7), ([5, 4, 3, 2, 1, 0], 1, (96, 64), 6), ([2, 1, 2], 7, (300, 40), 3),
    ([1, 0], 2, (0, 3), 2), ([1, 0], 2, (3, 0), 2),
]  # fmt: skip
IDS = [4, 1, 1, 0, 4, 2]


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_outputs():
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(backend, op, shape, dtype, device):
    backend.runs(f"multi_task_{op}", dtype)
    ids, length, features, tasks = shape
    with tss_kernels.use_backend(backend):
        check(op, on(draw(ids, length, features, dtype, tasks), device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(backend, activation, dtype, device):
    backend.runs("multi_task_adapter", dtype)
    with tss_kernels.use_backend(backend):
        check("adapter", on(draw(IDS, 3, (40, 24), dtype, 6), device), activation)


@settings(max_examples=60, deadline=None)
@given(
    backend=st.sampled_from(BACKENDS),
    op=st.sampled_from(OPERATIONS),
    ids=st.lists(st.integers(0, 4), max_size=9),
    length=st.integers(0, 5),
    features=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    layouts=st.lists(st.sampled_from(("contiguous", "permuted", "sliced")), min_size=8, max_size=8),
    seed=st.integers(0, 99),
)
def test_any_batch_and_layout(backend, op, ids, length, features, dtype, layouts, seed):
    """Ids in any order, tasks that repeat or are absent, and every tensor as it may lie in memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if why_not(backend, f"multi_task_{op}", device, dtype) is not None:
        return
    tensors = on(draw(ids, length, features, dtype, 5, seed), device)
    arranged = {
        name: in_layout(tensor, layout) if tensor.numel() else tensor
        for (name, tensor), layout in zip(tensors.items(), layouts, strict=True)
    }
    with tss_kernels.use_backend(backend):
        check(op, arranged)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "activation"), [("linear", ""), *(("adapter", name) for name in ("gelu", "relu"))])
def test_no_bit_of_an_entry_depends_on_the_rest_of_the_batch(backend, op, activation, dtype, device):
    """Alone, in another order, beside NaN, from a bank of its task alone: the same bits."""
    backend.runs(f"multi_task_{op}", dtype)
    tensors = on(draw([4, 1, 1, 0, 4, 2, 3] * 3, 5, (130, 67), dtype, 6), device)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    with tss_kernels.use_backend(backend):
        together = run(op, tensors, activation)
        moved = {name: tensors[name][order.to(device)] for name in ("x", "task_ids")}
        assert torch.equal(run(op, tensors | moved, activation), together[order.to(device)])
        spoilt = tensors["x"].clone()
        spoilt[1::2] = torch.nan
        assert torch.equal(run(op, tensors | {"x": spoilt}, activation)[::2], together[::2])
        for entry in (0, 6, 10, 18):
            task = int(tensors["task_ids"][entry])
            own = {name: tensors[name][task : task + 1] for name in ("down_bank", "up_bank")}
            alone = {"x": tensors["x"][entry : entry + 1], "task_ids": torch.zeros(1, dtype=torch.int64, device=device)}
            assert torch.equal(run(op, tensors | own | alone, activation)[0], together[entry])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPERATIONS)
def test_the_reference_has_the_bits_of_single_tasks(op, dtype, device):
    tensors = on(draw(IDS, 3, (70, 33), dtype, 6), device)
    with tss_kernels.use_backend("reference"):
        y = run(op, tensors)
        for entry in range(len(IDS)):
            assert torch.equal(y[entry], single(op, tensors, entry))


@pytest.mark.parametrize("leading", [(6,), (6, 1, 2), (6, 2, 2), (0,), (6, 0, 3)], ids=str)
@pytest.mark.parametrize("op", OPERATIONS)
def test_any_dimensions_between(backend, op, leading, device):
    """One id for each index of the first dimension, whatever lies between it and the features."""
    backend.runs(f"multi_task_{op}", torch.float32)
    ids = IDS[: leading[0]]
    tensors = on(draw(ids, torch.Size(leading[1:]).numel(), (9, 5), torch.float32, 6), device)
    with tss_kernels.use_backend(backend):
        flat = run(op, tensors)
        shaped = run(op, tensors | {"x": tensors["x"].view(*leading, 9)})
    assert shaped.shape == (*leading, flat.shape[-1])
    assert torch.equal(shaped.reshape(flat.shape), flat)


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_off_entry_is_zero_where_the_weight_is_not_finite(backend, op, device):
    backend.runs(f"multi_task_{op}", torch.float32)
    clean = on(draw([0, 1, 0], 2, (40, 17), torch.float32, 2), device)
    broken = {name: tensor.clone() for name, tensor in clean.items()}
    for name in ("down", "up"):
        clean[f"{name}_bank"][:, 1, 0] = broken[f"{name}_bank"][:, 1, 0] = 0b11111000
        broken[f"{name}_weight"][1, :3] = torch.tensor([torch.inf, torch.nan, -torch.inf], device=device)
    with tss_kernels.use_backend(backend):
        expected, actual = run(op, clean), run(op, broken)
    assert actual.isfinite().all()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(("ids", "says"), [([0, 6, 1], r"task_ids\[1\] is 6"), ([0, 1, -1], r"task_ids\[2\] is -1")])
@pytest.mark.parametrize("op", OPERATIONS)
def test_an_id_outside_the_bank_is_named(backend, op, ids, says, device):
    backend.runs(f"multi_task_{op}", torch.float32)
    if device.type == "cuda" and backend != "reference":
        pytest.skip("on a GPU, where naming it would wait for the device, its rows are NaN")
    tensors = on(draw(ids, 2, (9, 5), torch.float32, 6), device)
    with tss_kernels.use_backend(backend), pytest.raises(ValueError, match=f"{says}, but the bank has 6 tasks, 0 to 5"):
        run(op, tensors)
    empty = {name: tensors[name][:0] for name in ("down_bank", "up_bank")}
    with tss_kernels.use_backend(backend), pytest.raises(ValueError, match="is 0, but the bank has no tasks"):
        run(op, tensors | empty)
