"""Offsets past 2^31 elements, by large strides and by large tensors; skipped where the memory is not there."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

import tss_kernels
from tss_kernels.testing import assert_as_exact_as_pytorch

pytestmark = pytest.mark.gpu

ROWS = 2**21 + 3  # times 1024 columns: past 2^31
STRIDE = 2**30 + 16  # three of them: past 2^31
LAST = 40


@pytest.fixture(autouse=True)
def _given_back():
    yield
    gc.collect()
    torch.cuda.empty_cache()


def needs(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:.0f} GB of free GPU memory, there are {free:.0f}")


def far(values: torch.Tensor) -> torch.Tensor:
    """The same (4, width) matrix, its rows STRIDE elements apart."""
    rows, width = values.shape
    room = torch.empty((rows - 1) * STRIDE + width, dtype=values.dtype, device=values.device)
    return room.as_strided((rows, width), (STRIDE, 1)).copy_(values)


def gradients(x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    x, scores = x.detach().requires_grad_(), scores.detach().requires_grad_()
    y = tss_kernels.gated_linear(x, weight, scores)
    return [y.detach(), *torch.autograd.grad(y, (x, scores), dy)]


def by_hand(x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, dy: torch.Tensor, dtype: torch.dtype
            ) -> list[torch.Tensor]:  # fmt: skip
    wide = torch.promote_types(dtype, torch.float32)
    x, weight, dy = x.to(dtype), weight.to(dtype), dy.to(dtype)
    masked = torch.where(scores.detach() >= 0, weight, 0)
    return [x @ masked.T, dy @ masked, (dy.to(wide).T @ x.to(wide)) * weight.to(wide)]


@pytest.mark.parametrize("apart", ["rows", "columns"])
def test_rows_or_columns_that_lie_far_apart(backend, draw, apart):
    backend.runs("gated_linear", torch.bfloat16)
    needs(16)
    made = draw(torch.device("cuda"), 0)
    x, dy = (made.normal(4, 64), made.normal(4, 48)) if apart == "rows" else (made.normal(64, 4), made.normal(64, 4))
    far_x, far_dy = (far(x), far(dy)) if apart == "rows" else (far(x.t()).t(), far(dy.t()).t())
    assert far_x.stride(0 if apart == "rows" else 1) == STRIDE
    weight, scores = made.normal(dy.shape[1], x.shape[1]), made.scores(dy.shape[1], x.shape[1])
    with tss_kernels.use_backend(backend):
        found = gradients(far_x, weight, scores, far_dy)
    own, exact = (by_hand(x, weight, scores, dy, dtype) for dtype in (torch.bfloat16, torch.float64))
    for one, pytorch, reference in zip(found, own, exact, strict=True):
        assert_as_exact_as_pytorch(one, pytorch, reference)


def test_gated_linear_with_more_than_31_bits_of_outputs(by, draw):
    needs(22)
    made = draw(torch.device("cuda"), 1)
    x, weight, scores = made.normal(ROWS, 16), made.normal(1024, 16), made.scores(1024, 16)
    dy = torch.empty(ROWS, 1024, dtype=torch.bfloat16, device="cuda").normal_(generator=made.generator)
    y, dx, dscores = gradients(x, weight, scores, dy)
    gate = scores.detach() >= 0
    masked = torch.where(gate, weight, 0)
    for rows in (slice(0, LAST), slice(ROWS - LAST, ROWS)):
        assert_as_exact_as_pytorch(y[rows], x[rows] @ masked.T, x[rows].double() @ masked.double().T)
        assert_as_exact_as_pytorch(dx[rows], dy[rows] @ masked, dy[rows].double() @ masked.double())
    for out in (slice(0, 8), slice(1016, 1024)):
        own, exact = (
            (dy[:, out].to(dtype).T @ x.to(dtype)) * weight[out].to(dtype) for dtype in (torch.float32, torch.float64)
        )
        assert_as_exact_as_pytorch(dscores[out], own, exact)


def test_gated_linear_with_more_than_31_bits_of_inputs(by, draw):
    needs(22)
    made = draw(torch.device("cuda"), 2)
    x = torch.empty(ROWS, 1024, dtype=torch.bfloat16, device="cuda").normal_(generator=made.generator)
    weight, scores, dy = made.normal(16, 1024), made.scores(16, 1024), made.normal(ROWS, 16)
    y, dx, _ = gradients(x, weight, scores, dy)
    masked = torch.where(scores.detach() >= 0, weight, 0)
    for rows in (slice(0, LAST), slice(ROWS - LAST, ROWS)):
        assert_as_exact_as_pytorch(y[rows], x[rows] @ masked.T, x[rows].double() @ masked.double().T)
        assert_as_exact_as_pytorch(dx[rows], dy[rows] @ masked, dy[rows].double() @ masked.double())


def test_gated_adapter_with_more_than_31_bits_of_rows(by, draw):
    needs(34)
    made = draw(torch.device("cuda"), 3)
    x = torch.empty(ROWS, 1024, dtype=torch.bfloat16, device="cuda").normal_(generator=made.generator)
    down, up = made.normal(16, 1024) * 0.05, made.normal(1024, 16) * 0.05
    down_scores, up_scores = made.scores(16, 1024), made.scores(1024, 16)
    leaf = x.detach().requires_grad_()
    y = tss_kernels.gated_adapter(leaf, down, down_scores, up, up_scores, activation="gelu")
    (dx,) = torch.autograd.grad(y, leaf, x)

    def plain(rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        part = x[rows].to(dtype).requires_grad_()
        gated_down = torch.where(down_scores.detach() >= 0, down.to(dtype), 0)
        gated_up = torch.where(up_scores.detach() >= 0, up.to(dtype), 0)
        result = part + torch.nn.functional.gelu(part @ gated_down.T) @ gated_up.T
        return result.detach(), torch.autograd.grad(result, part, part.detach())[0]

    for rows in (slice(0, LAST), slice(ROWS - LAST, ROWS)):
        own, exact = plain(rows, torch.bfloat16), plain(rows, torch.float64)
        for found, pytorch, reference in zip((y.detach()[rows], dx[rows]), own, exact, strict=True):
            assert_as_exact_as_pytorch(found, pytorch, reference)


def test_pack_gates_with_more_than_31_bits_of_scores(by):
    needs(18)
    scores = torch.full((2**16 + 1, 2**15), -1.0, device="cuda")
    last = torch.randn(2**15, generator=torch.Generator().manual_seed(0))
    scores[-1] = last.cuda()
    packed = tss_kernels.pack_gates(scores)
    assert not packed[:-1].any()
    assert np.array_equal(packed[-1].cpu().numpy(), np.packbits((last >= 0).numpy(), bitorder="little"))
    del scores
    gates = tss_kernels.unpack_gates(packed, 2**15)
    assert not gates[:-1].any()
    assert torch.equal(gates[-1].cpu(), last >= 0)


def test_adamw_on_a_tensor_with_more_than_31_bits_of_elements(by):
    needs(24)
    size, hyper = 2**31 + 1000, {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6}
    lists = [[torch.empty(size, dtype=torch.bfloat16, device="cuda").uniform_()] for _ in range(4)]
    parts = [slice(0, 1000), slice(2**31 - 500, 2**31 + 500), slice(size - 500, size)]
    alone = [[[tensor[part].clone() for tensor in tensors] for tensors in lists] for part in parts]
    tss_kernels.soft_masked_adamw_(*lists, [None], step=2, **hyper)
    for part, small in zip(parts, alone, strict=True):
        tss_kernels.soft_masked_adamw_(*small, [None], step=2, **hyper)
        assert all(torch.equal(big[part], one) for (big,), (one,) in zip(lists, small, strict=True))


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_importance_of_more_than_31_bits_of_elements(by, per):
    needs(30)
    raw = torch.zeros(2**16 + 1, 2**15, device="cuda")
    raw[-1] = torch.linspace(-1.0, 1.0, 2**15, device="cuda")
    found = tss_kernels.normalize_importance(raw, per=per)

    def by_formula(dtype: torch.dtype) -> torch.Tensor:
        last = raw[-1].to(dtype)
        size = last.numel() if per == "row" else raw.numel()  # all other elements are 0
        mean = last.sum() / size
        deviation = (((last - mean).square().sum() + (size - last.numel()) * mean * mean) / size).sqrt()
        return ((last - mean) / (deviation + 1e-6)).tanh().abs()

    assert_as_exact_as_pytorch(found[-1], by_formula(torch.float32), by_formula(torch.float64))
    if per == "row":
        assert not found[:-1].any()
