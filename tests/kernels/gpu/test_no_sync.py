"""The processor never waits for the GPU: not in a forward or backward pass, not in an optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

import tss_kernels

pytestmark = pytest.mark.gpu


@contextmanager
def no_waiting() -> Iterator[None]:
    """PyTorch raises where it would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_is_noticed():
    with pytest.raises(RuntimeError), no_waiting():
        torch.ones(1, device="cuda").item()


def test_operations(by, draw):
    made = draw(torch.device("cuda"), 0)
    x, scores, weight = made.normal(300, 96).requires_grad_(), made.scores(48, 96), made.normal(48, 96)
    up_scores, up_weight, dy = made.scores(96, 48), made.normal(96, 48), made.normal(300, 48)
    importance, total = made.unit(48, 96), made.unit(48, 96)

    def everything() -> None:
        y = tss_kernels.gated_linear(x, weight, scores, importance=importance)
        torch.autograd.grad(y, (x, scores), dy)
        packed = tss_kernels.pack_gates(scores)
        tss_kernels.unpack_gates(packed, 96)
        torch.autograd.grad(tss_kernels.packed_linear(x, weight, packed), x, dy)
        y = tss_kernels.gated_adapter(x, weight, scores, up_weight, up_scores)
        torch.autograd.grad(y, (x, scores, up_scores), x.detach())
        tss_kernels.accumulate_importance_(total, tss_kernels.normalize_importance(importance))

    everything()  # compiles
    with no_waiting():
        everything()


def test_many_tasks(by, draw):
    made, ids = draw(torch.device("cuda"), 0), torch.tensor([3, 0, 3, 1, 9], device="cuda")  # one of no task
    x, down, up = made.normal(5, 60, 96).requires_grad_(), made.normal(48, 96), made.normal(96, 48)
    banks = [torch.stack([tss_kernels.pack_gates(made.scores(*w.shape)) for _ in range(4)]) for w in (down, up)]

    def everything() -> None:
        y = tss_kernels.multi_task_linear(x, down, banks[0], ids)
        torch.autograd.grad(y.sum(), x)
        y = tss_kernels.multi_task_adapter(x, down, banks[0], up, banks[1], ids)
        torch.autograd.grad(y.sum(), x)

    everything()  # compiles
    with no_waiting():
        everything()


def training(importance: bool) -> tuple[tss_kernels.GatedAdapter, Callable[[], None]]:
    torch.manual_seed(0)
    module = tss_kernels.GatedAdapter(96, 16, device="cuda", dtype=torch.bfloat16)
    scores = [module.down.scores, module.up.scores]
    masks = {score: torch.rand_like(score.detach()) for score in scores} if importance else {}
    optimizer = tss_kernels.SoftMaskedAdamW(scores, lr=1e-3, importance=masks)
    x = torch.randn(300, 96, device="cuda", dtype=torch.bfloat16)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        module(x).float().square().sum().backward()
        optimizer.step()

    return module, step


@pytest.mark.parametrize("importance", [False, True])
def test_a_training_step(by, importance):
    module, step = training(importance)
    for _ in range(3):
        step()
    before = module.down.scores.detach().clone()
    with no_waiting():
        for _ in range(3):
            step()
    assert not torch.equal(module.down.scores.detach(), before)


def test_an_optimizer_step_on_gradients_at_new_addresses(by):
    scores = [torch.nn.Parameter(torch.randn(64, 96, device="cuda")) for _ in range(3)]
    optimizer = tss_kernels.SoftMaskedAdamW(scores, lr=1e-3)
    kept = []
    for attempt in range(3):
        for score in scores:
            score.grad = torch.randn_like(score)
            kept.append(score.grad)  # never given back, so the next ones lie elsewhere
        if attempt < 2:
            optimizer.step()
            continue
        with no_waiting():
            optimizer.step()
