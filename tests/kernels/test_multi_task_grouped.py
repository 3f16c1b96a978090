"""Products of many tasks on the backends of GPUs: how a batch is grouped, ids that only the device sees, which bits."""

from __future__ import annotations

import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tss_kernels
from tests.kernels.multi_task_cases import OPERATIONS, check, draw, on, run
from tss_kernels.backends import tile_choice
from tss_kernels.backends.counts import TRITON_NARROW, TRITON_WIDE
from tss_kernels.backends.dispatch import implementation
from tss_kernels.backends.registry import why_not
from tss_kernels.backends.tables.cuda import FLOAT32, GENERAL, SMALL
from tss_kernels.gated_linear.cuda import is_aligned
from tss_kernels.multi_task import grouped
from tss_kernels.multi_task.grouped import Groups
from tss_kernels.testing import poisoned_outputs

GPU_BACKENDS = ("triton", "cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _skip_unless_it_runs(backend: str) -> None:
    obstacle = why_not(backend, "multi_task_linear", DEVICE, torch.float32)
    if obstacle is not None:
        pytest.skip(obstacle.reason)


@pytest.fixture(params=GPU_BACKENDS)
def by(request):
    """Each backend of GPUs, forced while a test runs."""
    _skip_unless_it_runs(request.param)
    with tss_kernels.use_backend(request.param), poisoned_outputs():
        yield request.param


@pytest.fixture
def unchecked(monkeypatch):
    """Ids on the CPU are left to the kernels, as those on a GPU are."""
    monkeypatch.setattr(grouped, "_check_on_the_host", lambda task_ids, tasks: None)


def kernels_of(backend: str) -> grouped.Kernels:
    return implementation("multi_task_linear", backend).KERNELS


@settings(max_examples=60, deadline=None)
@given(
    backend=st.sampled_from(GPU_BACKENDS),
    tasks=st.integers(1, 6),
    ids=st.lists(st.sampled_from([*range(8), 2**40, -1, -(2**63)]), min_size=1, max_size=40),
    length=st.integers(1, 70),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_every_row_is_in_one_tile_of_its_task(backend, tasks, ids, length, dtype):
    if why_not(backend, "multi_task_linear", DEVICE, dtype) is not None:
        return
    check_groups(kernels_of(backend).group(torch.tensor(ids, device=DEVICE), length, tasks, dtype), ids, length, tasks)


def check_groups(groups: Groups, ids: list[int], length: int, tasks: int) -> None:
    """Entries are in the order of their tasks, rows of no task last, and tiles take every row once."""
    known = [task if 0 <= task < tasks else tasks for task in ids]
    assert groups.order.tolist() == sorted(range(len(ids)), key=known.__getitem__)
    rows = []
    for task, first, count in groups.tiles.tolist():
        if count:
            rows += range(first, first + count)
            entries = {known[groups.order[row // length]] for row in (first, first + count - 1)}
            assert entries == {tasks if task == -1 else task}
    assert rows == list(range(len(ids) * length))


@pytest.mark.parametrize("entries", [256, 257, 3000])
def test_many_entries(by, entries):
    """More than a block of the grouping kernels takes at a time."""
    ids = torch.randint(-1, 9, (entries,), generator=torch.Generator().manual_seed(0))
    groups = kernels_of(by).group(ids.to(DEVICE), 1, 8, torch.bfloat16)
    check_groups(groups, ids.tolist(), 1, 8)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_an_id_that_only_the_device_sees_are_nan_and_no_others(by, op, dtype, unchecked):
    right = on(draw([3, 0, 3, 1, 2, 0], 3, (70, 40), dtype, 4), DEVICE)
    wrong = right | {"task_ids": torch.tensor([3, -1, 3, 4, 2**62, 0], device=DEVICE)}
    for inputs in (right, wrong):
        inputs["x"] = right["x"].clone().requires_grad_()
    expected, found = run(op, right), run(op, wrong)
    lost = torch.tensor([False, True, False, True, True, False], device=DEVICE)
    for actual, whole in (
        (found, expected),
        (torch.autograd.grad(found.sum(), wrong["x"])[0], torch.autograd.grad(expected.sum(), right["x"])[0]),
    ):
        assert actual[lost].isnan().all()
        assert torch.equal(actual[~lost], whole[~lost])


@pytest.mark.parametrize("op", OPERATIONS)
def test_without_tasks_every_row_is_nan(by, op, unchecked):
    tensors = on(draw([0, 1], 2, (9, 5), torch.float32, 2), DEVICE)
    x = tensors["x"].requires_grad_()
    y = run(op, tensors | {name: tensors[name][:0] for name in ("down_bank", "up_bank")})
    assert y.isnan().all()
    assert torch.autograd.grad(y.sum(), x)[0].isnan().all()


# in, out: narrow and wide, several tiles of what is summed over, ragged, single bytes of gates
FEATURES = [(160, 64), (96, 192), (64, 80), (70, 41)]


@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_the_single_task_product_by_the_same_tile(by, features, dtype, monkeypatch):
    """What that takes for few rows; its larger tiles, ranges of sums and the vendor's product may round differently."""
    if by == "triton" and dtype == torch.float32:
        pytest.skip("the tile of float32 has other rows")
    tensors = on(draw([2, 0, 2, 1], 9, features, dtype, 3), DEVICE)
    x, weight, bank, ids, bias = (
        tensors[name] for name in ("x", "down_weight", "down_bank", "task_ids", "down_bias")
    )  # fmt: skip
    y = tss_kernels.multi_task_linear(x, weight, bank, ids, bias)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    dx = torch.ops.tss_kernels.multi_task_linear_input_grad(dy, weight, bank, ids, by)
    single = implementation("packed_linear", by)
    options: dict[str, object] = {"strategy": "fused"}
    smallest = [tiles[-1] for tiles in (TRITON_NARROW, TRITON_WIDE)]
    monkeypatch.setattr(tile_choice, "triton_product", lambda rows, summed, out: smallest[out > 64])
    for entry, task in enumerate(ids.tolist()):
        if by == "cuda":
            tiling = FLOAT32 if dtype == torch.float32 else SMALL if is_aligned(x[entry], weight) else GENERAL
            options = {"tiling": tiling, "materialise": False}
        assert torch.equal(single.packed_linear(x[entry], weight, bank[task], bias, **options), y[entry])
        if by == "cuda" and dtype != torch.float32:
            options["tiling"] = SMALL if is_aligned(dy[entry], weight) else GENERAL
        assert torch.equal(single.input_grad(dy[entry], weight, bank[task], **options), dx[entry])


@pytest.mark.parametrize("op", OPERATIONS)
def test_rows_one_by_one_and_in_sequences(by, op):
    """An id for each row and one for each sequence give the same bits."""
    tensors = on(draw([2, 0, 2, 1], 40, (70, 40), torch.bfloat16, 3), DEVICE)
    rows = {"x": tensors["x"].flatten(0, 1), "task_ids": tensors["task_ids"].repeat_interleave(40)}
    assert torch.equal(run(op, tensors | rows), run(op, tensors).flatten(0, 1))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the interpreter wraps 32-bit offsets like a GPU, without the memory")
@pytest.mark.parametrize("op", OPERATIONS)
def test_offsets_beyond_31_bits(by, op):
    stride, entries, width = 2**30 + 16, 4, 16
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    room = mmap.mmap(-1, ((entries - 1) * stride + width) * 2, flags=flags)
    far = torch.frombuffer(room, dtype=torch.float16).as_strided((entries, 1, width), (stride, width, 1))
    tensors = draw([1, 0, 1, 1], 1, (width, 24), torch.float16, 2)
    expected = run(op, tensors)
    far.copy_(tensors["x"])
    assert torch.equal(run(op, tensors | {"x": far}), expected)


FAULTS = {
    "another task's gates": lambda groups: groups.tiles[:, 0].copy_((groups.tiles[:, 0] + 1) % 4),
    "entries in another order": lambda groups: groups.order.copy_(groups.order.flip(0)),
    "a row less in each tile": lambda groups: groups.tiles[:, 2].sub_(1).clamp_(min=0),
    "rows of the tile before": lambda groups: groups.tiles[:, 1].sub_(1).clamp_(min=0),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("op", OPERATIONS)
def test_planted_faults_are_noticed(by, op, fault, monkeypatch):
    """The checks that these tests are made of fail on a batch that is grouped wrongly."""
    module, tensors = (
        implementation("multi_task_linear", by),
        on(draw([3, 0, 3, 1], 3, (70, 40), torch.float32, 4), DEVICE),
    )
    right = module.KERNELS

    def wrong(*arguments):
        groups = right.group(*arguments)
        FAULTS[fault](groups)
        return groups

    check(op, tensors)
    faulty = right._replace(group=wrong)
    for name in ("linear", "linear_input_grad", "adapter", "adapter_input_grad"):
        function = getattr(grouped, name)
        monkeypatch.setattr(module, name, lambda *given, function=function: function(faulty, *given))
    with pytest.raises(AssertionError):
        check(op, tensors)
