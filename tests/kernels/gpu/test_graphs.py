"""CUDA graphs: what is captured follows whatever is copied into its inputs, gates included."""

from __future__ import annotations

import pytest
import torch

import tss_kernels
from tss_kernels.backends.registry import why_not

pytestmark = pytest.mark.gpu


def linear_inputs(made, rows: int, inner: int, out: int) -> dict[str, torch.Tensor]:
    return {
        "x": made.normal(rows, inner).requires_grad_(), "scores": made.scores(out, inner), "dy": made.normal(rows, out)
    }  # fmt: skip


def replace(inputs: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            inputs[name].copy_(value)


def test_gated_linear_forward_and_backward(by, draw, capture):
    made = draw(torch.device("cuda"), 0)
    inputs, others = linear_inputs(made, 1200, 96, 48), linear_inputs(made, 1200, 96, 48)
    weight, importance = made.normal(48, 96), made.unit(48, 96)

    def step(t: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        y = tss_kernels.gated_linear(t["x"], weight, t["scores"], importance=importance)
        return [y, *torch.autograd.grad(y, (t["x"], t["scores"]), t["dy"])]

    expected = [tensor.clone() for tensor in step(others)]
    found, replay = capture(lambda: step(inputs))
    replace(inputs, others)
    replay()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_gated_adapter_forward_and_backward(by, draw, capture):
    made = draw(torch.device("cuda"), 0)

    def drawn() -> dict[str, torch.Tensor]:
        return {
            "x": made.normal(1200, 96).requires_grad_(), "down": made.scores(16, 96), "up": made.scores(96, 16),
            "dy": made.normal(1200, 96),
        }  # fmt: skip

    inputs, others = drawn(), drawn()
    down, up = made.normal(16, 96) * 0.1, made.normal(96, 16) * 0.1

    def step(t: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        y = tss_kernels.gated_adapter(t["x"], down, t["down"], up, t["up"])
        return [y, *torch.autograd.grad(y, (t["x"], t["down"], t["up"]), t["dy"])]

    expected = [tensor.clone() for tensor in step(others)]
    found, replay = capture(lambda: step(inputs))
    replace(inputs, others)
    replay()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_packed_linear_switches_tasks_between_replays(by, draw, capture):
    made = draw(torch.device("cuda"), 0)
    weight, dy = made.normal(48, 96), made.normal(300, 48)
    x = made.normal(300, 96).requires_grad_()
    tasks = [tss_kernels.pack_gates(made.scores(48, 96)) for _ in range(3)]
    active = tasks[0].clone()

    def step(gates: torch.Tensor) -> list[torch.Tensor]:
        y = tss_kernels.packed_linear(x, weight, gates)
        return [y, *torch.autograd.grad(y, x, dy)]

    expected = [[tensor.clone() for tensor in step(gates)] for gates in tasks]
    assert not torch.equal(expected[0][0], expected[1][0])
    found, replay = capture(lambda: step(active))
    for task in (1, 2, 0, 1):
        active.copy_(tasks[task])
        replay()
        assert all(torch.equal(one, other) for one, other in zip(found, expected[task], strict=True))


def test_a_batch_takes_other_tasks_between_replays(by, draw, capture):
    made = draw(torch.device("cuda"), 0)
    down, up, dy = made.normal(16, 96) * 0.1, made.normal(96, 16) * 0.1, made.normal(6, 50, 96)
    x = made.normal(6, 50, 96).requires_grad_()
    banks = [torch.stack([tss_kernels.pack_gates(made.scores(*w.shape)) for _ in range(4)]) for w in (down, up)]
    batches = [torch.tensor(ids, device="cuda") for ids in ([0, 0, 0, 0, 0, 0], [3, 1, 2, 0, 3, 1], [2, 2, 1, 1, 0, 0])]
    active = batches[0].clone()

    def step(ids: torch.Tensor) -> list[torch.Tensor]:
        y = tss_kernels.multi_task_adapter(x, down, banks[0], up, banks[1], ids, activation="gelu")
        return [y, *torch.autograd.grad(y, x, dy)]

    expected = [[tensor.clone() for tensor in step(ids)] for ids in batches]
    found, replay = capture(lambda: step(active))
    for batch in (1, 2, 0, 1):
        active.copy_(batches[batch])
        replay()
        assert all(torch.equal(one, other) for one, other in zip(found, expected[batch], strict=True))


def test_a_layers_graph_follows_its_scores(by, draw, capture):
    # A layer may remember the gates of its scores; a graph must not replay what was remembered.
    torch.manual_seed(0)
    layer = tss_kernels.GatedAdapterLinear(96, 48, device="cuda", dtype=torch.bfloat16)
    x = draw(torch.device("cuda"), 0).normal(300, 96)
    before = layer(x).detach().clone()
    found, replay = capture(lambda: layer(x))
    with torch.no_grad():
        layer.scores.neg_()
    replay()
    assert not torch.equal(found, before)
    with tss_kernels.use_backend("reference"):
        expected = layer(x)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        layer.scores.neg_()
    replay()
    assert torch.equal(found, before)
    assert torch.equal(layer(x), before)


def test_an_optimizer_step_in_a_graph_is_refused(by, draw):
    made = draw(torch.device("cuda"), 0)
    lists = [[made.unit(64)] for _ in range(4)]
    hyper = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6}
    tss_kernels.soft_masked_adamw_(*lists, [None], step=1, **hyper)
    before = [tensor.clone() for (tensor,) in lists]
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        tss_kernels.soft_masked_adamw_(*lists, [None], step=2, **hyper)
    assert all(torch.equal(tensor, old) for (tensor,), old in zip(lists, before, strict=True))


@pytest.mark.parametrize("backend", ["cuda", "reference"])
def test_a_step_with_its_numbers_on_the_device_is_replayed(draw, backend):
    obstacle = why_not(backend, "soft_masked_adamw_", torch.device("cuda"), torch.float32)
    if obstacle is not None:
        pytest.skip(obstacle.reason)
    made = draw(torch.device("cuda"), 0)
    start, gradient, soft = made.normal(70, 33).float(), made.normal(70, 33).float(), made.unit(70, 33).float()

    def optimizer_of(parameter: torch.nn.Parameter, lr: torch.Tensor) -> tss_kernels.SoftMaskedAdamW:
        parameter.grad = gradient.clone()
        return tss_kernels.SoftMaskedAdamW([parameter], lr=lr, capturable=True, importance={parameter: soft})

    with tss_kernels.use_backend(backend):
        replayed, eager = (torch.nn.Parameter(start.clone()) for _ in range(2))
        rates = torch.tensor(0.01, device="cuda"), torch.tensor(0.01, device="cuda")
        optimizers = optimizer_of(replayed, rates[0]), optimizer_of(eager, rates[1])
        for optimizer in optimizers:  # the state is made outside the graph
            optimizer.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizers[0].step()
        for number in range(10):
            for rate in rates:
                rate.fill_(0.01 / (number + 1))
            graph.replay()
            optimizers[1].step()
    assert torch.equal(replayed, eager)
    assert optimizers[0].state[replayed]["step"].item() == 11


def test_a_rate_that_is_a_number_is_captured(draw):
    made = draw(torch.device("cuda"), 0)
    start = made.unit(70, 33)
    replayed, eager = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [tss_kernels.SoftMaskedAdamW([one], lr=0.01, capturable=True) for one in (replayed, eager)]
    gradient = made.unit(70, 33)
    for one, optimizer in zip((replayed, eager), optimizers, strict=True):
        one.grad = gradient.clone()
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[0].step()
    for _ in range(10):
        graph.replay()
        optimizers[1].step()
    assert torch.equal(replayed, eager)


def test_a_layer_follows_steps_that_a_graph_replays(draw):
    # The forward pass is not in the graph: nothing but the capture itself tells the scores of its replays.
    torch.manual_seed(0)
    layer = tss_kernels.GatedAdapterLinear(96, 48, device="cuda", dtype=torch.bfloat16)
    x = draw(torch.device("cuda"), 0).normal(300, 96)
    optimizer = tss_kernels.SoftMaskedAdamW(
        [layer.scores], lr=10.0, betas=(0.0, 0.0), weight_decay=0.0, capturable=True
    )  # steps of a fixed size in the gradient's direction
    layer(x).float().sum().backward()
    optimizer.step()
    layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        before = layer.scores.detach() >= 0
        layer(x)
        layer.scores.grad.neg_()
        for _ in range(3):
            graph.replay()
        found = layer(x)
        assert not torch.equal(before, layer.scores.detach() >= 0)
        with tss_kernels.use_backend("reference"):
            torch.testing.assert_close(found, layer(x))
