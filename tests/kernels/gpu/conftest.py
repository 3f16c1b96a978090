"""What only a GPU can show: every operation on random inputs, and the capture of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import tss_kernels
from tss_kernels.backends.registry import why_not

Tensors = list[torch.Tensor]
SCALARS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.01}


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device: torch.cuda.is_available() is False")


class Draw:
    """Random tensors on a device from a seed."""

    def __init__(self, device: torch.device, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        drawn = torch.randn(shape, generator=self.generator, device=self.device)
        return drawn.to(dtype or self.dtype)

    def unit(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def scores(self, *shape: int) -> torch.Tensor:
        return self.normal(*shape, dtype=torch.float32).requires_grad_()


def linear(draw: Draw, rows: int = 1200, inner: int = 96, out: int = 48) -> Tensors:
    x, scores = draw.normal(rows, inner).requires_grad_(), draw.scores(out, inner)
    y = tss_kernels.gated_linear(x, draw.normal(out, inner), scores, draw.normal(out), importance=draw.unit(out, inner))
    return [y.detach(), *torch.autograd.grad(y, (x, scores), draw.normal(rows, out))]


def packed(draw: Draw, rows: int = 1200, inner: int = 96, out: int = 48) -> Tensors:
    x, bits = draw.normal(rows, inner).requires_grad_(), tss_kernels.pack_gates(draw.scores(out, inner))
    y = tss_kernels.packed_linear(x, draw.normal(out, inner), bits, draw.normal(out))
    return [bits, tss_kernels.unpack_gates(bits, inner), y.detach(), *torch.autograd.grad(y, x, draw.normal(rows, out))]


def adapter(draw: Draw, rows: int = 1200, hidden: int = 96, bottleneck: int = 16) -> Tensors:
    x = draw.normal(rows, hidden).requires_grad_()
    down, up = draw.scores(bottleneck, hidden), draw.scores(hidden, bottleneck)
    y = tss_kernels.gated_adapter(
        x, draw.normal(bottleneck, hidden) * 0.1, down, draw.normal(hidden, bottleneck) * 0.1, up,
        draw.normal(bottleneck), draw.normal(hidden), activation="gelu",
        down_importance=draw.unit(bottleneck, hidden), up_importance=draw.unit(hidden, bottleneck),
    )  # fmt: skip
    return [y.detach(), *torch.autograd.grad(y, (x, down, up), draw.normal(rows, hidden))]


def many_tasks(draw: Draw, rows: int = 1200, hidden: int = 96, bottleneck: int = 16) -> Tensors:
    """Both operations on entries of 40 rows, of seven tasks."""
    entries = max(rows // 40, 1)
    ids = torch.arange(entries, device=draw.device) * 3 % 7
    x = draw.normal(entries, 40, hidden).requires_grad_()
    down, up = draw.normal(bottleneck, hidden) * 0.1, draw.normal(hidden, bottleneck) * 0.1
    banks = [torch.stack([tss_kernels.pack_gates(draw.scores(*w.shape)) for _ in range(7)]) for w in (down, up)]
    y = tss_kernels.multi_task_linear(x, down, banks[0], ids, draw.normal(bottleneck))
    z = tss_kernels.multi_task_adapter(x, down, banks[0], up, banks[1], ids, activation="gelu")
    return [
        y.detach(), z.detach(), *torch.autograd.grad(y, x, draw.normal(*y.shape)),
        *torch.autograd.grad(z, x, draw.normal(*z.shape)),
    ]  # fmt: skip


def adamw(draw: Draw) -> Tensors:
    shapes = [(48, 96), (7,), (2500,)]
    lists = [[draw.unit(*shape) for shape in shapes] for _ in range(4)]
    importances = [draw.unit(48, 96), None, draw.unit(2500)]
    tss_kernels.soft_masked_adamw_(*lists, importances, step=3, **SCALARS)
    return [tensor for tensors in lists for tensor in tensors]


def importance(draw: Draw) -> Tensors:
    new = tss_kernels.normalize_importance(draw.normal(48, 96, dtype=torch.float32))
    return [new, tss_kernels.accumulate_importance_(draw.unit(48, 96), new)]


RUNS: dict[str, Callable[..., Tensors]] = {
    "gated_linear": linear,
    "packed_linear": packed,
    "gated_adapter": adapter,
    "multi_task": many_tasks,
    "soft_masked_adamw_": adamw,
    "normalize_importance": importance,
}


GPU_BACKENDS = ("triton", "cuda")


@contextmanager
def _forced(backend: str | None) -> Iterator[str | None]:
    obstacle = None
    if backend is not None:
        obstacle = why_not(backend, "gated_linear", torch.device("cuda"), torch.bfloat16)
    if obstacle is not None:
        pytest.skip(obstacle.reason)
    with tss_kernels.use_backend(backend):
        yield backend


@pytest.fixture(params=GPU_BACKENDS)
def by(request, _needs_a_gpu) -> Iterator[str | None]:
    """Each backend of GPUs, forced while a test runs; skips, with the reason, where it cannot."""
    with _forced(request.param) as backend:
        yield backend


@pytest.fixture(params=[None, *GPU_BACKENDS], ids=str)
def by_any(request, _needs_a_gpu) -> Iterator[str | None]:
    """Dispatch's own choice, which may be another for each operation, and then as `by`."""
    with _forced(request.param) as backend:
        yield backend


@pytest.fixture(params=RUNS)
def run(request, by_any) -> Callable[..., Tensors]:
    """Every operation by turns, on every backend, as a function of (device, seed, sizes...) that returns its results
    and gradients."""
    function = RUNS[request.param]

    def call(device: torch.device | str, seed: int, *sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
        return function(Draw(torch.device(device), seed, dtype), *sizes)

    return call


@pytest.fixture
def draw() -> type[Draw]:
    return Draw


@pytest.fixture
def capture() -> Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]:
    """Captures a function as a CUDA graph; returns what it gave, whose tensors a replay overwrites, and the replay."""

    def captured(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, loads and allocates what a capture must not
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        return outputs, graph.replay

    return captured
