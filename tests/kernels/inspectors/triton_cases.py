"""The launches that are compiled without a GPU: per operation, calls of its host functions that reach every kernel and
every configuration it ships. A new kernel has its line in KERNELS, a new operation its function in OPERATIONS.

Tensors have shapes and no memory here, so the sizes cost nothing. Their addresses are 0, which 16 divides, as it
divides the addresses that PyTorch allocates on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tests.kernels.inspectors.resources import Case, Kernel

KERNELS = {
    "forward_kernel": Kernel(product=True, masked=True, wide=True),
    "input_grad_kernel": Kernel(product=True, masked=True, wide=True),
    "short_kernel": Kernel(product=True, masked=True, wide=True),
    "partial_kernel": Kernel(product=True, wide=True),
    "reduce_kernel": Kernel(),
    "mask_kernel": Kernel(wide=True),
    "adapter_forward_kernel": Kernel(product=True, masked=True, wide=True),
    "adapter_input_grad_kernel": Kernel(product=True, masked=True, wide=True),
    "group_kernel": Kernel(),
    "multi_task_forward_kernel": Kernel(product=True, masked=True, wide=True),
    "multi_task_input_grad_kernel": Kernel(product=True, masked=True, wide=True),
    "pack_kernel": Kernel(),
    "unpack_kernel": Kernel(),
    "statistics_kernel": Kernel(),
    "importance_kernel": Kernel(),
    "accumulate_kernel": Kernel(wide=True),
    "adamw_kernel": Kernel(wide=True),
}

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
# dtype, rows, in, out: few rows, which compare scores inside; down, up and square in every tile of rows; then what has
# one pipeline stage less, ragged rows, and float32.
PRODUCTS = (
    *((BFLOAT16, 128, *shape) for shape in ((1024, 64), (64, 1024), (1024, 1024), (100, 50))),
    *((BFLOAT16, rows, 1024, out) for rows, out in ((512, 8192), (256, 4096))),
    (FLOAT32, 128, 1024, 64),
    *((BFLOAT16, rows, 1024, 64) for rows in (65536, 8192, 512)),
    *((BFLOAT16, rows, 64, 1024) for rows in (65536, 8192, 512, 256)),
    *((BFLOAT16, rows, 1024, 1024) for rows in (4096, 1024, 512)),
    (BFLOAT16, 4096, 128, 128),
    (BFLOAT16, 4096, 64, 64),
    (BFLOAT16, 512, 100, 50),
    (BFLOAT16, 512, 1000, 1000),
    (FLOAT32, 512, 1024, 64),
    (FLOAT32, 512, 64, 1024),
    (FLOAT32, 512, 1000, 1000),
)
# Another dtype of the same size, and what is left to the vendor's product: alike on all architectures.
ALIKE = (
    (FLOAT16, 4096, 1024, 64),
    (BFLOAT16, 65536, 1024, 1024),
    (BFLOAT16, 4096, 1000, 1000),
    (FLOAT32, 4096, 1024, 1024),
)
# dtype, rows, d, bottleneck: every tile
ADAPTERS = (
    *((BFLOAT16, rows, 1024, 64) for rows in (65536, 8448, 512)),
    *((BFLOAT16, rows, 1024, 128) for rows in (65536, 512)),
    (BFLOAT16, 512, 100, 50),
    (BFLOAT16, 512, 100, 100),
    (FLOAT32, 512, 1024, 64),
    (FLOAT32, 512, 100, 50),
)
# dtype, rows of an entry, in, out; in every tile, and adapters with each side in one of them
MANY_TASKS = (
    *((BFLOAT16, 64, *shape) for shape in ((1024, 64), (1024, 1024), (64, 64), (100, 50))),
    (BFLOAT16, 1, 1024, 64),
    *((FLOAT32, 64, *shape) for shape in ((1024, 64), (100, 50))),
)
# Sizes that are compiled in, because they are 1, and others that no 16 divides.
ODD = ((FLOAT32, 5, 1, 3), (FLOAT32, 5, 9, 1), (BFLOAT16, 5, 1, 3), (BFLOAT16, 5, 9, 1))


def empty(*shape: int, dtype: torch.dtype = FLOAT32) -> torch.Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def name_of(dtype: torch.dtype) -> str:
    """The dtype in a label."""
    return str(dtype).removeprefix("torch.")


def as_tf32(call: Callable[[], None]) -> None:
    """The call as it is where PyTorch may round float32 operands to tf32."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        call()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def gated_linear() -> Iterator[Case]:
    """Product by scores and by packed gates, input gradient and score gradient."""
    from tss_kernels.gated_linear import triton

    def call(packed: bool, dtype: torch.dtype, rows: int, in_features: int, out_features: int) -> None:
        # Every tile is compiled, also for rows at which the tables take the vendor's product.
        strategy = "fused" if dtype != FLOAT32 and (dtype, rows, in_features, out_features) in PRODUCTS else None
        x, dy = empty(rows, in_features, dtype=dtype), empty(rows, out_features, dtype=dtype)
        weight, scores = empty(out_features, in_features, dtype=dtype), empty(out_features, in_features)
        bias, gates = empty(out_features, dtype=dtype), empty(out_features, (in_features + 7) // 8, dtype=torch.uint8)
        if packed:
            triton.packed_linear(x, weight, gates, bias, strategy)
            return
        triton.forward(x, weight, scores, bias, 0.0, strategy)
        triton.input_grad(dy, weight, gates, strategy)
        triton.scores_grad(dy, x, weight, scores)

    for shape in (*PRODUCTS, *ALIKE):
        dtype, rows, in_features, out_features = shape
        label = f"{name_of(dtype)} {rows} x {in_features} -> {out_features}"
        aligned = in_features % 16 == out_features % 16 == 0
        yield Case(label, lambda shape=shape: call(False, *shape), aligned, everywhere=shape in PRODUCTS)
        yield Case(f"{label}, packed", lambda shape=shape: call(True, *shape), aligned)
    dy, x, weight = empty(64, 512).t(), empty(1024, 512).t(), empty(64, 1024)
    yield Case("float32 512 x 1024 -> 64, columns", lambda: triton.scores_grad(dy, x, weight, weight))
    yield Case("tf32 512 x 1024 -> 64", lambda: as_tf32(lambda: call(False, FLOAT32, 512, 1024, 64)), aligned=True)


def gated_adapter() -> Iterator[Case]:
    """Forward pass and input gradient in one kernel each; gelu is the activation with most registers."""
    from tss_kernels.gated_adapter import triton

    def call(
        dtype: torch.dtype, rows: int, features: int, bottleneck: int, activation: str, x_dtype: torch.dtype
    ) -> None:
        x = empty(rows, features, dtype=x_dtype)
        down, up = empty(bottleneck, features, dtype=dtype), empty(features, bottleneck, dtype=dtype)
        gates = [empty(shape[0], (shape[1] + 7) // 8, dtype=torch.uint8) for shape in (down.shape, up.shape)]
        biases = empty(bottleneck, dtype=dtype), empty(features, dtype=dtype)
        _, hidden = triton.forward(x, down, gates[0], up, gates[1], *biases, activation)
        triton.input_grad(x, hidden, down, gates[0], up, gates[1], activation, True)

    activations = ((*ADAPTERS[0], activation, BFLOAT16) for activation in ("relu", "silu", "tanh"))
    wider = ((*ADAPTERS[number], "gelu", FLOAT32) for number in (0, 3))  # autocast leaves x in float32
    for shape in (*((*shape, "gelu", shape[0]) for shape in (*ADAPTERS, *ODD)), *activations, *wider):
        dtype, rows, features, bottleneck, activation, x_dtype = shape
        names = name_of(dtype) if x_dtype == dtype else f"{name_of(x_dtype)} and {name_of(dtype)}"
        yield Case(
            f"{names} {rows} x {features}, {bottleneck} hidden, {activation}",
            lambda shape=shape: call(*shape),
            features % 16 == 0 and bottleneck % 16 == 0,
            everywhere=shape[:4] in ADAPTERS and activation == "gelu" and x_dtype == dtype,
        )


def multi_task() -> Iterator[Case]:
    """Products and adapters of 32 entries and 8 tasks; the launch that groups them is the same for all."""
    from tss_kernels.multi_task import triton

    def call(op: str, activation: str, dtype: torch.dtype, length: int, inner: int, out: int) -> None:
        x, ids = empty(32, length, inner, dtype=dtype), empty(32, dtype=torch.int64)
        down, up = empty(out, inner, dtype=dtype), empty(inner, out, dtype=dtype)
        banks = [empty(8, shape[0], (shape[1] + 7) // 8, dtype=torch.uint8) for shape in (down.shape, up.shape)]
        biases = empty(out, dtype=dtype), empty(inner, dtype=dtype)
        if op == "linear":
            y = triton.linear(x, down, banks[0], ids, biases[0])
            triton.linear_input_grad(y, down, banks[0], ids)
            return
        y, hidden = triton.adapter(x, down, banks[0], up, banks[1], ids, *biases, activation)
        triton.adapter_input_grad(y, hidden, down, banks[0], up, banks[1], ids, activation)

    adapters = ((MANY_TASKS[0], activation) for activation in ("relu", "gelu", "silu", "tanh"))
    for op, shape, activation in (
        *(("linear", shape, "") for shape in MANY_TASKS),
        *(("adapter", *adapter) for adapter in adapters),
        ("adapter", MANY_TASKS[3], "gelu"),
        ("adapter", MANY_TASKS[5], "gelu"),
    ):
        dtype, length, inner, out = shape
        yield Case(
            f"{name_of(dtype)} 32 of {length} x {inner} -> {out}, {activation or op}",
            lambda all=(op, activation, *shape): call(*all),
            aligned=inner % 16 == out % 16 == 0,
            everywhere=activation in ("", "gelu"),
        )


def gates() -> Iterator[Case]:
    """Packing one matrix and two, and unpacking."""
    from tss_kernels.gates import triton

    for dtype, features in ((FLOAT32, 1024), (BFLOAT16, 1024), (FLOAT32, 100)):
        label, scores = f"{name_of(dtype)} 64 x {features}", empty(64, features, dtype=dtype)
        yield Case(label, lambda scores=scores: triton.pack_gates(scores, 0.0))
        yield Case(f"{label}, two", lambda scores=scores: triton.pack_gates_pair(scores, scores.t(), 0.0))
    for features in (1024, 100):
        packed = empty(64, (features + 7) // 8, dtype=torch.uint8)
        yield Case(f"64 x {features}", lambda packed=packed, features=features: triton.unpack_gates(packed, features))


def importance() -> Iterator[Case]:
    """Normalisation over a matrix and over rows, with and without the maximum, and the maximum alone."""
    from tss_kernels.importance import triton

    for shape in ((64, 1024), (1024, 4096)):
        raw = empty(*shape)
        label = f"{shape[0]} x {shape[1]}"
        yield Case(f"{label}, per tensor", lambda raw=raw: triton.normalize_importance(raw, "tensor"))
        yield Case(f"{label}, per row", lambda raw=raw: triton.normalize_importance(raw, "row"))
        yield Case(f"{label}, per tensor, maximum", lambda raw=raw: triton.update_importance_(raw, raw, "tensor"))
    total = empty(64, 1024)
    yield Case("maximum alone", lambda: triton.accumulate_importance_(total, total), aligned=True)


def adamw() -> Iterator[Case]:
    """The optimizer's step at both sites, for few and many tensors."""
    from tss_kernels.adamw.triton import soft_masked_adamw_

    def call(count: int, site: str, dtype: torch.dtype) -> None:
        tensors, scores = ([empty(64, 1024, dtype=kind) for _ in range(count)] for kind in (dtype, FLOAT32))
        soft_masked_adamw_(
            tensors, tensors, tensors, tensors, scores,
            step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, site=site,
        )  # fmt: skip

    for count, site, dtype in (
        (48, "gradient", FLOAT32),
        (48, "update", FLOAT32),
        (48, "update", BFLOAT16),
        (1, "update", FLOAT32),
        (600, "update", FLOAT32),
    ):
        label, step = f"{count} of {name_of(dtype)} 64 x 1024, {site}", (count, site, dtype)
        yield Case(label, lambda step=step: call(*step), aligned=True)


OPERATIONS: dict[str, Callable[[], Iterator[Case]]] = {
    "gated_linear": gated_linear,
    "gated_adapter": gated_adapter,
    "multi_task": multi_task,
    "gates": gates,
    "importance": importance,
    "soft_masked_adamw_": adamw,
}
