"""Calls every operation forward and backward on every backend at ragged sizes: what compute-sanitizer watches.

`python -m tests.kernels.inspectors.each_op [--device cpu] [--backends cuda,triton]` prints how many calls ran of what,
the last line being proof that all did. The C++ products and adapter run with each of their tilings, both strategies of
Triton too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

import tss_kernels
from tss_kernels import use_backend
from tss_kernels.backends.registry import why_not

# rows, in, out: unaligned, aligned with ragged tiles, a single element, rows that are summed in ranges
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


def _many_tasks(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> int:
    """Entries of several rows, tasks that repeat and are absent."""
    rows, inner, out = shape
    ids = torch.tensor([4, 0, 4, 1, 0], device=device)
    x = torch.randn(5, -(-rows // 5), inner, device=device, dtype=dtype, requires_grad=True)
    down, up = (torch.randn(size, device=device, dtype=dtype) for size in ((out, inner), (inner, out)))
    banks = [torch.randint(256, (6, w.shape[0], -(-w.shape[1] // 8)), device=device).byte() for w in (down, up)]
    y = tss_kernels.multi_task_linear(x, down, banks[0], ids, torch.randn(out, device=device, dtype=dtype))
    z = tss_kernels.multi_task_adapter(x, down, banks[0], up, banks[1], ids, activation="gelu")
    _finite(y, z, *(torch.autograd.grad(result.sum(), x)[0] for result in (y, z)))
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


def _steps(device: torch.device) -> int:
    """An optimizer's steps, which leave the next gates behind, packed."""
    layer = tss_kernels.GatedAdapterLinear(70, 41, device=device)
    optimizer = tss_kernels.SoftMaskedAdamW([layer.scores], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(9, 70, device=device)).square().sum().backward()
        optimizer.step()
    _finite(layer.scores.detach())
    return 2


def _importance(device: torch.device) -> int:
    for per in ("tensor", "row"):
        raw, total = torch.randn(41, 70, device=device), torch.rand(41, 70, device=device)
        new = tss_kernels.normalize_importance(raw, per=per)
        _finite(tss_kernels.accumulate_importance_(total, new), tss_kernels.update_importance_(total, raw, per=per))
    return 6


def _operands(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    rows, inner, out = shape
    drawn = {
        "x": (rows, inner), "dy": (rows, out), "weight": (out, inner), "bias": (out,), "up_weight": (inner, out),
        "up_bias": (inner,),
    }  # fmt: skip
    made = {name: torch.randn(size, device=device, dtype=dtype) for name, size in drawn.items()}
    made["packed"] = tss_kernels.pack_gates(torch.randn(out, inner, device=device))
    made["up_packed"] = tss_kernels.pack_gates(torch.randn(inner, out, device=device))
    return made


def _triton_strategies(t: dict[str, torch.Tensor]) -> int:
    from tss_kernels.gated_linear import triton

    for strategy in ("fused", "materialise"):
        _finite(triton.packed_linear(t["x"], t["weight"], t["packed"], t["bias"], strategy))
        _finite(triton.input_grad(t["dy"], t["weight"], t["packed"], strategy))
    return 4


def _cuda_tilings(t: dict[str, torch.Tensor]) -> int:
    from tss_kernels.backends.tables.cuda import FLOAT32, GENERAL, TILINGS, has_warpgroups
    from tss_kernels.gated_linear import cuda

    x, weight, packed = t["x"], t["weight"], t["packed"]
    tilings = (FLOAT32,) if x.dtype == torch.float32 else TILINGS
    if not cuda.is_aligned(x, weight) and x.dtype != torch.float32:
        tilings = (GENERAL,)  # the others copy 16 bytes at a time
    calls = 0
    for tiling in tilings:
        if tiling.name.endswith("groups") and not has_warpgroups(x.device):
            continue
        _finite(cuda.packed_linear(x, weight, packed, t["bias"], tiling, False))
        calls += 1
        if x.dtype != torch.float32:  # the sums in ranges
            _finite(cuda.packed_linear(x, weight, packed, t["bias"], tiling, False, 2))
            calls += 1
        if x.dtype == torch.float32 or tiling == GENERAL or cuda.is_aligned(t["dy"], weight):
            _finite(cuda.input_grad(t["dy"], weight, packed, tiling, False))
            calls += 1
    _finite(cuda.packed_linear(x, weight, packed, t["bias"], None, True))
    _finite(cuda.input_grad(t["dy"], weight, packed, None, True))
    return calls + 2


def _cuda_adapters(t: dict[str, torch.Tensor]) -> int:
    from tss_kernels.backends.tables.cuda_adapter import TILES
    from tss_kernels.gated_adapter import cuda

    weights = t["weight"], t["packed"], t["up_weight"], t["up_packed"]
    if t["x"].dtype == torch.float32:
        return 0
    for tile in TILES:
        for activation in ("relu", "gelu", "silu", "tanh"):
            y, hidden = cuda.forward(t["x"], *weights, t["bias"], t["up_bias"], activation, tile=tile)
            _finite(y, *cuda.input_grad(t["x"], hidden, *weights, activation, True, tile=tile))
    return 2 * 4 * len(TILES)


def _runs(backend: str, device: torch.device) -> Iterator[tuple[str, int]]:
    """What ran on one backend, and how many calls that were."""
    yield "importance", _importance(device)
    yield "optimizer steps", _steps(device)
    for dtype in (torch.float32, torch.bfloat16):
        yield "updates", _updates(device, dtype)
        for shape in SHAPES:
            yield "operations", _products(device, dtype, shape)
            yield "many tasks", _many_tasks(device, dtype, shape)
            operands = _operands(device, dtype, shape)
            if backend == "triton":
                yield "strategies", _triton_strategies(operands)
            if backend == "cuda":
                yield "tilings", _cuda_tilings(operands)
                yield "adapter tiles", _cuda_adapters(operands)


def main() -> None:
    """Every operation in every dtype at every shape; raises AssertionError where a result is not finite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    # The compiled kernels first: Triton's are compiled while the clock runs, unless an earlier process did.
    parser.add_argument("--backends", default="cuda,triton", help="those of them that run on the device")
    chosen = parser.parse_args()
    device, calls = torch.device(chosen.device), 0
    for backend in chosen.backends.split(","):
        obstacle = why_not(backend, "gated_linear", device, torch.float32)
        if obstacle is not None:
            print(f"{backend}: {obstacle.reason}")
            continue
        torch.manual_seed(0)
        with use_backend(backend):
            counts: dict[str, int] = {}
            for name, count in _runs(backend, device):
                counts[name] = counts.get(name, 0) + count
        print(f"{backend}: {', '.join(f'{count} {name}' for name, count in counts.items())}", flush=True)
        calls += sum(counts.values())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    print(f"{calls} calls ran")


if __name__ == "__main__":
    main()
