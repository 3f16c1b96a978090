"""Calls every operation forward and backward at ragged sizes: what compute-sanitizer watches.

`python -m bench.gpu.each_op [--device cpu]`; prints how many calls ran, the last line being proof that all did.
"""

from __future__ import annotations

import argparse

import torch

import tss_kernels

# rows, in, out: uneven, even with ragged tiles, a single element, rows that are summed in ranges
SHAPES = ((33, 70, 41), (100, 96, 48), (1, 1, 1), (700, 64, 32))


def _finite(*tensors: torch.Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is not None
        assert bool(tensor.float().isfinite().all()), "a result is not finite"


def _products(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> int:
    rows, inner, out = shape
    x = torch.randn(rows, inner, device=device, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(out, inner, device=device, dtype=dtype), torch.randn(out, device=device, dtype=dtype)
    scores = torch.randn(out, inner, device=device, requires_grad=True)
    y = tss_kernels.gated_linear(x, weight, scores, bias, importance=torch.rand(out, inner, device=device))
    y.backward(torch.randn_like(y))
    _finite(y, x.grad, scores.grad)
    packed = tss_kernels.pack_gates(scores)
    assert torch.equal(tss_kernels.unpack_gates(packed, inner), scores.detach() >= 0)
    y = tss_kernels.packed_linear(x, weight, packed, bias)
    y.backward(torch.randn_like(y))
    _finite(y, x.grad)
    up_weight, up_scores = torch.randn(inner, out, device=device, dtype=dtype), torch.randn(inner, out, device=device)
    y = tss_kernels.gated_adapter(x, weight, scores, up_weight, up_scores.requires_grad_(), bias)
    y.backward(torch.randn_like(y))
    _finite(y, x.grad, scores.grad, up_scores.grad)
    return 4


def _updates(device: torch.device, dtype: torch.dtype) -> int:
    shapes = [(1,), (1023,), (1025,), (33, 5), (2500,)]
    params, grads, exp_avgs, exp_avg_sqs = (
        [torch.rand(shape, device=device, dtype=dtype) for shape in shapes] for _ in range(4)
    )
    importances = [None if i == 1 else torch.rand(shape, device=device) for i, shape in enumerate(shapes)]
    for site in ("update", "gradient"):
        tss_kernels.soft_masked_adamw_(
            params, grads, exp_avgs, exp_avg_sqs, importances,
            step=3, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01, site=site,
        )  # fmt: skip
    _finite(*params, *exp_avgs, *exp_avg_sqs)
    return 2


def _importance(device: torch.device) -> int:
    for per in ("tensor", "row"):
        new = tss_kernels.normalize_importance(torch.randn(41, 70, device=device), per=per)
        _finite(tss_kernels.accumulate_importance_(torch.rand(41, 70, device=device), new))
    return 4


def main() -> None:
    """Every operation in every dtype at every shape; raises AssertionError where a result is not finite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    calls = _importance(device)
    for dtype in (torch.float32, torch.bfloat16):
        calls += _updates(device, dtype)
        calls += sum(_products(device, dtype, shape) for shape in SHAPES)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    print(f"{calls} calls ran")


if __name__ == "__main__":
    main()
