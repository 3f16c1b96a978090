"""The launches that are compiled without a GPU: per operation, calls of its host functions that reach every kernel and
every configuration it ships. A new kernel has its line in KERNELS, a new operation its function in OPERATIONS.

Tensors are only described, never filled or read: the shapes cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tss_kernels.testing.resources import Case, Kernel

KERNELS = {
    "forward_kernel": Kernel(product=True, masked=True, wide=True),
    "input_grad_kernel": Kernel(product=True, masked=True, wide=True),
    "partial_kernel": Kernel(product=True, wide=True),
    "reduce_kernel": Kernel(),
    "adamw_kernel": Kernel(wide=True),
}

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
# dtype, rows, in, out: what reaches every tile of the products, down, up and square; few rows take the smallest tiles.
PRODUCTS = (
    *((BFLOAT16, rows, 1024, 64) for rows in (65536, 8448, 512)),
    *((BFLOAT16, rows, 64, 1024) for rows in (65536, 8448, 512)),
    *((BFLOAT16, rows, 1024, 1024) for rows in (65536, 1088, 512)),
    (BFLOAT16, 4096, 128, 1024),
    (BFLOAT16, 4096, 1024, 128),
    (BFLOAT16, 4096, 100, 50),
    (BFLOAT16, 4096, 1000, 1000),
    (FLOAT16, 65536, 1024, 64),
    (FLOAT32, 4096, 1024, 64),
    (FLOAT32, 4096, 64, 1024),
    (FLOAT32, 4096, 1024, 1024),
    (FLOAT32, 4096, 1000, 1000),
)


def named(dtype: torch.dtype, rows: int, in_features: int, out_features: int) -> str:
    """A product's label."""
    return f"{str(dtype).removeprefix('torch.')} {rows} x {in_features} -> {out_features}"


def gated_linear() -> Iterator[Case]:
    """Product, input gradient and score gradient."""
    from tss_kernels.gated_linear import triton

    def call(dtype: torch.dtype, rows: int, in_features: int, out_features: int) -> None:
        x, dy = torch.empty(rows, in_features, dtype=dtype), torch.empty(rows, out_features, dtype=dtype)
        weight = torch.empty(out_features, in_features, dtype=dtype)
        scores = torch.empty(out_features, in_features)
        _, packed = triton.forward(x, weight, scores, weight[:, 0].contiguous(), 0.0)
        triton.input_grad(dy, weight, packed)
        triton.scores_grad(dy, x, weight, scores)

    for product in PRODUCTS:
        even = all(size % 16 == 0 for size in product[2:])
        yield Case(named(*product), even, lambda product=product: call(*product))


def adamw() -> Iterator[Case]:
    """The optimizer's step, for few and many tensors."""
    from tss_kernels.adamw.triton import soft_masked_adamw_

    def call(count: int, site: str, dtype: torch.dtype) -> None:
        tensors, scores = ([torch.empty(64, 1024, dtype=kind) for _ in range(count)] for kind in (dtype, FLOAT32))
        soft_masked_adamw_(
            tensors, tensors, tensors, tensors, scores,
            step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, site=site,
        )  # fmt: skip

    for count, site, dtype in (
        (48, "gradient", FLOAT32), (48, "update", FLOAT32), (1, "update", FLOAT32), (600, "update", FLOAT32),
        (48, "update", BFLOAT16),
    ):  # fmt: skip
        label = f"{count} tensors of {str(dtype).removeprefix('torch.')}, {site}"
        yield Case(label, True, lambda count=count, site=site, dtype=dtype: call(count, site, dtype))


OPERATIONS: dict[str, Callable[[], Iterator[Case]]] = {"gated_linear": gated_linear, "soft_masked_adamw_": adamw}
