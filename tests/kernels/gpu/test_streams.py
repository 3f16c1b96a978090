"""Streams that are not the default one, two of them at once, and devices that are not the current one."""

from __future__ import annotations

import pytest
import torch

import tss_kernels

pytestmark = pytest.mark.gpu


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert [torch.equal(one, other) for one, other in zip(found, expected, strict=True)] == [True] * len(expected)


def test_two_streams_at_once(run):
    expected = [run("cuda", seed) for seed in (1, 2)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in expected]
    found: list[list[list[torch.Tensor]]] = [[], []]
    for _ in range(10):
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[number].append(run("cuda", number + 1))
    torch.cuda.synchronize()
    for number in (0, 1):
        for results in found[number]:
            assert_same(results, expected[number])


def trained(steps: int) -> torch.Tensor:
    torch.manual_seed(0)
    layer = tss_kernels.GatedAdapter(96, 16, device="cuda")
    optimizer = tss_kernels.SoftMaskedAdamW([layer.down.scores, layer.up.scores], lr=1e-2)
    optimizer.set_importance(layer.down.scores, torch.rand_like(layer.down.scores.detach()))
    x = torch.randn(300, 96, device="cuda")
    for _ in range(steps):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    return torch.cat([layer.down.scores.detach().flatten(), layer.up.scores.detach().flatten()])


def test_training_on_another_stream(by):
    expected = trained(5)
    torch.cuda.synchronize()
    # Work that is still running on the default stream must not be waited for by accident, nor be overtaken.
    with torch.cuda.stream(torch.cuda.Stream()):
        found = trained(5)
    torch.cuda.synchronize()
    assert torch.equal(found, expected)


def test_backward_from_another_stream(by, draw):
    def gradients(stream: torch.cuda.Stream) -> list[torch.Tensor]:
        made = draw(torch.device("cuda"), 3)
        x, scores = made.normal(300, 96).requires_grad_(), made.scores(48, 96)
        weight, dy = made.normal(48, 96), made.normal(300, 48)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y = tss_kernels.gated_linear(x, weight, scores)
        torch.cuda.current_stream().wait_stream(stream)
        return list(torch.autograd.grad(y, (x, scores), dy))

    expected = gradients(torch.cuda.current_stream())
    found = gradients(torch.cuda.Stream())
    torch.cuda.synchronize()
    assert_same(found, expected)


@pytest.mark.parametrize("current", [0, 1])
def test_the_tensors_device_counts_not_the_current_one(run, current):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices, there is one")
    other = 1 - current
    with torch.cuda.device(other):
        expected = run(f"cuda:{other}", 1)
    with torch.cuda.device(current):
        found = run(f"cuda:{other}", 1)
        assert torch.cuda.current_device() == current
    assert {tensor.device.index for tensor in found} == {other}
    assert_same(found, expected)
