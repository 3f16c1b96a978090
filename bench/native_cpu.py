"""The native backend against the reference and PyTorch on this CPU: python bench/native_cpu.py [--threads 1 2]

Every line is checked against the reference before it is timed. What is compared on a line runs by turns, and the median
of its repeats is printed: other work on the machine then slows all of it alike. Random data, hot caches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

import tss_kernels
from tss_kernels.native import kernels

Call = Callable[[], object]
REPEATS, SECONDS = 25, 0.004  # of each call, and how long one repeat lasts at least


class Line(NamedTuple):
    """What is timed against each other, by name: "native" is compared with the rest."""

    group: str
    what: str
    calls: dict[str, Call]


def by(backend: str, function: Callable[..., object], *args: object, **options: object) -> Call:
    """The call with a backend forced."""

    def call() -> object:
        with tss_kernels.use_backend(backend):
            return function(*args, **options)

    return call


def both(function: Callable[..., object], *args: object, **options: object) -> dict[str, Call]:
    """The call on native and on reference, checked to agree first."""
    calls = {backend: by(backend, function, *args, **options) for backend in ("native", "reference")}
    torch.testing.assert_close(calls["native"](), calls["reference"](), equal_nan=True)
    return calls


def gates() -> Iterator[Line]:
    """Packing, unpacking and the packed product."""
    for out, columns in ((64, 256), (64, 1024), (1024, 1024)):
        for dtype in (torch.float32, torch.bfloat16):
            scores = torch.randn(out, columns).to(dtype)
            yield Line("pack_gates", f"{out}x{columns} {dtype}", both(tss_kernels.pack_gates, scores))
        packed = tss_kernels.pack_gates(torch.randn(out, columns))
        yield Line("unpack_gates", f"{out}x{columns}", both(tss_kernels.unpack_gates, packed, columns))
        x, weight = torch.randn(4, columns), torch.randn(out, columns)
        yield Line("packed_linear", f"4 rows {out}x{columns}", both(tss_kernels.packed_linear, x, weight, packed))


def products(rows: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> Iterator[Line]:
    """gated_linear, forward and with its backward pass, beside the product without gates."""
    linear = torch.nn.functional.linear
    for dtype in dtypes:
        for columns, out in ((256, 64), (1024, 64), (64, 1024), (1024, 1024)):
            for count in rows:
                x = torch.randn(count, columns).to(dtype)
                weight, scores = torch.randn(out, columns).to(dtype), torch.randn(out, columns)
                dy, importance = torch.randn(count, out).to(dtype), torch.rand(out, columns)
                what = f"{count} rows {columns} -> {out} {dtype}"
                calls = both(tss_kernels.gated_linear, x, weight, scores)
                calls["F.linear"] = lambda x=x, weight=weight: linear(x, weight)
                yield Line("gated_linear", what, calls)
                layer = tss_kernels.GatedAdapterLinear(columns, out, bias=False, dtype=dtype)
                kept = {backend: by(backend, layer, x) for backend in ("native", "reference")}
                yield Line("layer, no gradient", what, kept | {"F.linear": calls["F.linear"]})
                yield Line("forward + backward", what, _backward(x, weight, scores, importance, dy))


def _backward(
    x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, importance: torch.Tensor, dy: torch.Tensor
) -> dict[str, Call]:
    x, scores, trained = (tensor.clone().requires_grad_() for tensor in (x, scores, weight))

    def gated() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(tss_kernels.gated_linear(x, weight, scores, importance=importance), (x, scores), dy)

    return both(gated) | {
        "F.linear": lambda: torch.autograd.grad(torch.nn.functional.linear(x, trained), (x, trained), dy)
    }


def adapters() -> Iterator[Line]:
    """The whole adapter."""
    for rows, size, bottleneck in ((512, 256, 64), (512, 1024, 64), (2048, 1024, 64)):
        layer = tss_kernels.GatedAdapter(size, bottleneck)
        for parameter in layer.parameters():
            parameter.requires_grad_(parameter.dim() == 2)
        x, dy = torch.randn(rows, size, requires_grad=True), torch.randn(rows, size)
        scores = [parameter for name, parameter in layer.named_parameters() if "scores" in name]

        def step(layer=layer, x=x, dy=dy, scores=scores) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(layer(x), (x, *scores), dy)

        yield Line("adapter, fwd + bwd", f"{rows} rows {size} -> {bottleneck}", both(step))


def optimizers() -> Iterator[Line]:
    """Soft-masked AdamW beside torch's fused AdamW, alone and with a multiplication of every gradient."""
    for count, shape in ((48, (64, 1024)), (1, (3072, 1024)), (4, (64, 256))):
        yield Line("soft-masked AdamW", f"{count} x {shape[0]}x{shape[1]} float32", _steps(count, shape))


def _steps(count: int, shape: tuple[int, int]) -> dict[str, Call]:
    importances = [torch.rand(shape) for _ in range(count)]
    starts, grads = [torch.randn(shape) for _ in range(count)], [torch.randn(shape) for _ in range(count)]

    def parameters() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(start.clone()) for start in starts]
        for parameter, grad in zip(made, grads, strict=True):
            parameter.grad = grad.clone()
        return made

    calls, ours = {}, {}
    for backend in ("native", "reference"):
        ours[backend] = parameters()
        masks = dict(zip(ours[backend], importances, strict=True))
        calls[backend] = by(backend, tss_kernels.SoftMaskedAdamW(ours[backend], importance=masks).step)
        calls[backend]()
    torch.testing.assert_close(ours["native"], ours["reference"])
    params = parameters()
    fused = torch.optim.AdamW(params, fused=True)
    keeps = [1 - importance for importance in importances]

    def masked_fused() -> None:
        torch._foreach_mul_([param.grad for param in params], keeps)  # type: ignore[arg-type]
        fused.step()

    return calls | {"fused + mul": masked_fused, "fused": fused.step}


def importances() -> Iterator[Line]:
    """From raw importance to its maximum over tasks."""
    for out, columns in ((64, 256), (64, 1024), (1024, 1024)):
        raw, total = torch.randn(out, columns).abs(), torch.rand(out, columns)
        what = f"{out}x{columns} float32"
        for per in ("tensor", "row"):
            yield Line(f"normalize per {per}", what, both(tss_kernels.normalize_importance, raw, per=per))
            yield Line(f"update per {per}", what, both(tss_kernels.update_importance_, total, raw, per=per))
        yield Line("accumulate", what, both(tss_kernels.accumulate_importance_, total, raw))


def measured(calls: dict[str, Call]) -> dict[str, float]:
    """Microseconds of a call: the median of repeats that take turns; of one thread in processor time."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    loops = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        loops[name] = max(1, int(SECONDS / (clock() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            start = clock()
            for _ in range(loops[name]):
                call()
            times[name].append((clock() - start) / loops[name] * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


GROUPS = {
    "gates": gates,
    "products": lambda: products((32, 512, 2048), (torch.float32,)),
    "products-bf16": lambda: products((512,), (torch.bfloat16,)),
    "adapters": adapters,
    "adamw": optimizers,
    "importance": importances,
}


def main() -> None:
    """Prints a table: microseconds, and each rival's time over native's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--instruction-set", choices=kernels.instruction_sets(), default=kernels.instruction_set())
    arguments = parser.parse_args()
    kernels.use_instruction_set(arguments.instruction_set)
    print(f"torch {torch.__version__}, {kernels.instruction_set()}; median of {REPEATS}; microseconds (times native's)")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        for name in arguments.groups:
            for line in GROUPS[name]():
                found = measured(line.calls)
                rivals = "  ".join(
                    f"{name} {value:9.1f} ({value / found['native']:5.2f}x)"
                    for name, value in found.items()
                    if name != "native"
                )
                print(
                    f"{threads} thr  {line.group:20} {line.what:38} native {found['native']:9.1f}  {rivals}", flush=True
                )


if __name__ == "__main__":
    main()
