"""The native backend's threads: no bit depends on their number, and neither a fork nor several callers disturb them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.utils.data

import tss_kernels
from tests.kernels.native_kernels import INSTRUCTION_SETS, assert_same_bits, instruction_set, random, threads

pytest.importorskip("tss_kernels.backends.native", reason="the native backend was not built", exc_type=ImportError)

from tss_kernels.adamw import native as adamw
from tss_kernels.backends import native
from tss_kernels.gated_linear import native as linear
from tss_kernels.gates import native as gates
from tss_kernels.importance import native as importance
from tss_kernels.multi_task import native as multi_task

OUT, IN = 301, 1203  # enough for several threads, in rows that end within a byte
STEP = {
    "step": 2.0, "lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "site": "update",
}  # fmt: skip


def step() -> list[torch.Tensor]:
    """What a step writes: three parameters, a large one between small ones, and their moments."""
    shapes = ((3, 5), (OUT, IN), (40, 4000))
    lists = [[random(*shape, seed=place) for shape in shapes] for place in range(3)]
    lists.append([random(*shape, seed=4).abs() for shape in shapes])
    adamw.soft_masked_adamw_(*lists, [None, random(OUT, IN, seed=5), None], **STEP)
    return [*lists[0], *lists[2], *lists[3]]


def update(per: str) -> torch.Tensor:
    total = random(OUT, IN, seed=1)
    importance.update_importance_(total, torch.rand(OUT, IN, generator=torch.Generator().manual_seed(2)), per)
    return total


def accumulate() -> torch.Tensor:
    total = random(OUT, IN)
    importance.accumulate_importance_(total, random(OUT, IN, seed=1))
    return total


def multi_task_products() -> list[torch.Tensor]:
    """Both products of rows of many tasks, over more rows than a thread takes at a time."""
    weight, ids = random(70, 300).nan_to_num(0, 1, -1), torch.arange(40) * 7 % 5
    bank = torch.stack([gates.pack_gates(random(70, 300, seed=seed), 0.1) for seed in range(5)])
    x, dy = random(40, 9, 300, seed=6).nan_to_num(0, 1, -1), random(40, 9, 70, seed=7).nan_to_num(0, 1, -1)
    hidden = multi_task.linear(x, weight, bank, ids, None)
    return [hidden, multi_task.linear_input_grad(dy, weight, bank, ids), multi_task.activate(hidden, "gelu")]


def calls() -> dict[str, Callable[[], torch.Tensor | list[torch.Tensor]]]:
    weight, scores = random(OUT, IN), random(OUT, IN, seed=1)
    packed = gates.pack_gates(scores, 0.1)
    dy, x = torch.ones(1, OUT), torch.ones(1, IN)
    return {
        "pack": lambda: gates.pack_gates(scores, 0.1),
        "unpack": lambda: gates.unpack_gates(packed, IN),
        "mask by bits": lambda: linear.masked_by_bits(weight, packed),
        "scores": lambda: linear.scores_grad(dy, x, weight, scores),
        "adamw": step,
        "importance": lambda: update("tensor"),
        "importance per row": lambda: update("row"),
        "accumulate": accumulate,
        "many tasks": multi_task_products,
    }


@pytest.fixture(params=["PyTorch's", "own"])
def team(request):
    """Whose threads work."""
    found = native.torchs_team()
    if request.param != "own" and not found:
        pytest.skip("PyTorch has no OpenMP runtime with GOMP_parallel here")
    native.kernels.use_team(found if request.param != "own" else 0)
    yield request.param
    native.kernels.use_team(found)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", sorted(calls()))
def test_no_bit_depends_on_the_number_of_threads(name, isa, team):
    call = calls()[name]
    with instruction_set("portable"), threads(1):
        alone = call()
    for number in (1, 2, 3, 16):
        with instruction_set(isa), threads(number):
            together = call()
        pairs = zip(together, alone, strict=True) if isinstance(alone, list) else [(together, alone)]
        for actual, expected in pairs:
            assert_same_bits(actual, expected)


def test_every_thread_has_the_callers_way_with_denormals(team):
    tiny, ones = torch.full((1, 600_000), 1e-40), torch.ones(1, 600_000)
    with threads(8):  # a new thread starts in its maker's way, so they are made before it changes
        assert linear.scores_grad(ones[:, :1], ones, tiny.view(1, -1), None).gt(0).all()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        with threads(8):
            for _ in range(10):
                total = linear.scores_grad(ones[:, :1], ones, tiny.view(1, -1), None)
                assert total.eq(0).all(), "a denormal was multiplied in a thread that does not flush it"
    finally:
        torch.set_flush_denormal(False)


def test_several_callers_at_once(team):
    cases = calls()
    with threads(3):
        expected = {name: call() for name, call in cases.items()}
        with ThreadPoolExecutor(6) as pool:
            tasks = [(name, pool.submit(cases[name])) for name in list(cases) * 8]
            for name, task in tasks:
                several = isinstance(expected[name], list)
                pairs = (
                    zip(task.result(), expected[name], strict=True) if several else [(task.result(), expected[name])]
                )
                for actual, wanted in pairs:
                    assert_same_bits(actual, wanted)


def test_a_backward_pass_in_another_thread(team):
    layer, x = tss_kernels.GatedAdapterLinear(1024, 300), torch.randn(64, 1024)
    with threads(2), ThreadPoolExecutor(2) as pool:
        layer(x).sum().backward()
        expected, layer.scores.grad = layer.scores.grad, None
        y = layer(x).sum()
        pool.submit(y.backward).result()
        assert_same_bits(layer.scores.grad, expected)
        losses = [layer(x).sum() for _ in range(6)]
        grads = [pool.submit(torch.autograd.grad, loss, layer.scores) for loss in losses]
        for grad in grads:
            assert_same_bits(grad.result()[0], expected)


def test_a_thread_of_pytorchs_has_its_own_way_with_denormals_again():
    if not native.torchs_team():
        pytest.skip("PyTorch has no OpenMP runtime with GOMP_parallel here")
    tiny = torch.full((1, 600_000), 1e-40)
    with threads(4):
        tiny.mul(1.0)  # a new thread starts in its maker's way, so they are made before it changes
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush denormals")
        try:
            linear.scores_grad(tiny[:, :1], tiny, tiny, None)
        finally:
            torch.set_flush_denormal(False)
        for _ in range(10):
            assert tiny.mul(1.0).gt(0).all(), "a thread went on flushing denormals"


class Packing(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.scores = random(OUT, IN)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        with threads(2):  # PyTorch gives a worker one
            return gates.pack_gates(self.scores, float(index))


def test_workers_of_a_data_loader():
    data = Packing()
    with threads(2):
        expected = [gates.pack_gates(data.scores, float(index)) for index in range(4)]
        data.scores.exp()
        loader = torch.utils.data.DataLoader(
            data, batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork"
        )
        for actual, wanted in zip(loader, expected, strict=True):
            assert torch.equal(actual, wanted)


FORKING = """
import os, sys, threading
import torch
from tss_kernels.gates import native as gates
torch.set_num_threads(4)
scores = torch.randn(400, 4000)
expected = gates.pack_gates(scores, 0.0)
bits = expected.numpy().tobytes()
scores.exp()  # PyTorch's own threads have worked
going = True
def work():  # the pool's mutex may be held and its threads at work in the moment of the fork
    while going:
        gates.pack_gates(scores, 0.0)
worker = threading.Thread(target=work)
worker.start()
for _ in range(20):
    child = os.fork()
    if child == 0:  # whose PyTorch may wait for threads that are not: it is asked for nothing here
        os._exit(0 if all(gates.pack_gates(scores, 0.0).numpy().tobytes() == bits for _ in range(3)) else 1)
    assert os.waitpid(child, 0)[1] == 0, "a child computed something else"
going = False
worker.join()
assert torch.equal(gates.pack_gates(scores, 0.0), expected)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_computes_on():
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
