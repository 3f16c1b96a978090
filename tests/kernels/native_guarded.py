"""Runs every native kernel on tensors that end where memory that may not be touched begins: an access past the end of
an input or an output ends the process.

Run as a script on Linux; it names the functions of the module that it ran. `--short FUNCTION` makes one tensor of that
function smaller than it believes, to show that it is seen.
"""

from __future__ import annotations

import sys

import torch
from triton_guarded import guarded, guarded_empty

from tss_kernels.backends.native import kernels
from tss_kernels.tensors import DTYPE_CODES

SIZES = ((3, 5), (2, 33), (4, 8), (1, 1031), (3, 1032))
THREADS = 3


def pack(short: int) -> None:
    for dtype, kind in DTYPE_CODES.items():
        for rows, columns in SIZES:
            scores = guarded(torch.randn(rows * columns - short).to(dtype))
            packed = guarded_empty(rows, (columns + 7) // 8, dtype=torch.uint8)
            kernels.pack(scores.data_ptr(), kind, 0.0, packed.data_ptr(), rows, columns, THREADS)


def unpack(short: int) -> None:
    for rows, columns in SIZES:
        packed = guarded(torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8))
        gate = guarded_empty(rows * columns - short, dtype=torch.bool)
        kernels.unpack(packed.data_ptr(), gate.data_ptr(), rows, columns, THREADS)


def mask_by_scores(short: int) -> None:
    for dtype in DTYPE_CODES:
        for rows, columns in SIZES:
            weight, scores = guarded(torch.randn(rows, columns).to(dtype)), guarded(torch.randn(rows * columns - short))
            masked = guarded_empty(rows, columns, dtype=dtype)
            packed = guarded_empty(rows, (columns + 7) // 8, dtype=torch.uint8)
            kernels.mask_by_scores(
                weight.data_ptr(), masked.data_ptr(), dtype.itemsize, scores.data_ptr(), 0, 0.0, packed.data_ptr(),
                rows, columns, THREADS,
            )  # fmt: skip
            kernels.mask_by_scores(
                weight.data_ptr(),
                masked.data_ptr(),
                dtype.itemsize,
                scores.data_ptr(),
                0,
                0.0,
                0,
                rows,
                columns,
                THREADS,
            )


def mask_by_bits(short: int) -> None:
    for dtype in DTYPE_CODES:
        for rows, columns in SIZES:
            weight = guarded(torch.randn(rows * columns - short).to(dtype))
            masked = guarded_empty(rows, columns, dtype=dtype)
            packed = guarded(torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8))
            kernels.mask_by_bits(
                weight.data_ptr(), masked.data_ptr(), dtype.itemsize, packed.data_ptr(), rows, columns, THREADS
            )


def scores_grad(short: int) -> None:
    for dtype, kind in DTYPE_CODES.items():
        for rows, columns in SIZES:
            count = rows * columns
            weight, importance = guarded(torch.randn(count).to(dtype)), guarded(torch.rand(count - short).to(dtype))
            wide = torch.promote_types(dtype, torch.float32)
            product, grad = guarded(torch.randn(count, dtype=wide)), guarded_empty(count)
            kernels.scores_grad(
                product.data_ptr(), DTYPE_CODES[wide], weight.data_ptr(), kind, importance.data_ptr(), kind,
                grad.data_ptr(), count, THREADS,
            )  # fmt: skip


def adamw(short: int) -> None:
    for dtype, kind in DTYPE_CODES.items():
        table: list[int] = []
        tensors = []
        for rows, columns in SIZES:
            own = [guarded(torch.rand(rows, columns).to(dtype)) for _ in range(4)]
            own.append(guarded(torch.rand(rows * columns - short).to(dtype)))
            tensors += own
            table += [*(tensor.data_ptr() for tensor in own), 0x11111 * kind, rows * columns]
        numbers = guarded(torch.tensor(table, dtype=torch.int64))
        kernels.adamw(numbers.data_ptr(), len(SIZES), 0.1, 0.1, 0.99, 0.01, 0.1, 0.1, 1e-8, True, True, THREADS)


def importance(short: int) -> None:
    for dtype, kind in DTYPE_CODES.items():
        for other, update in ((torch.float32, False), *((other, True) for other in DTYPE_CODES)):
            for rows, columns in SIZES:
                for groups, size in ((rows, columns), (1, rows * columns)):
                    raw = guarded(torch.rand(rows * columns - short).to(dtype))
                    target = guarded(torch.rand(rows, columns).to(other))
                    kernels.importance(
                        raw.data_ptr(), kind, target.data_ptr(), DTYPE_CODES[other], update, groups, size, THREADS
                    )


def accumulate(short: int) -> None:
    for dtype, kind in DTYPE_CODES.items():
        for rows, columns in SIZES:
            total, new = (
                guarded(torch.rand(rows * columns).to(dtype)),
                guarded(torch.rand(rows * columns - short).to(dtype)),
            )
            kernels.accumulate(total.data_ptr(), new.data_ptr(), kind, rows * columns, THREADS)


def multi_task_product(short: int) -> None:
    ids = guarded(torch.tensor([2, 0, 2]))
    for dtype, kind in DTYPE_CODES.items():
        for out, columns in (*SIZES, (70, 270)):
            for length, backward in ((1, False), (5, False), (1, True), (5, True)):
                features, results = (out, columns) if backward else (columns, out)
                rows = guarded(torch.randn(3 * length * features - short).to(dtype))
                weight, bias = guarded(torch.randn(out, columns).to(dtype)), guarded(torch.randn(results).to(dtype))
                bank = guarded(torch.randint(0, 256, (3, out, (columns + 7) // 8), dtype=torch.uint8))
                y = guarded_empty(3 * length, results, dtype=dtype)
                outside = kernels.multi_task_product(
                    rows.data_ptr(), features, weight.data_ptr(), kind, bank.data_ptr(), bank.stride(0), 3,
                    ids.data_ptr(), 3, length, bias.data_ptr(), y.data_ptr(), out, columns, backward, THREADS,
                )  # fmt: skip
                assert outside == -1


def activate(short: int) -> None:
    for dtype, kind in DTYPE_CODES.items():
        for rows, columns in SIZES:
            for activation in range(4):
                before = guarded(torch.randn(rows * columns - short).to(dtype))
                active = guarded_empty(rows, columns, dtype=dtype)
                kernels.activate(before.data_ptr(), active.data_ptr(), kind, activation, rows * columns, THREADS)


FUNCTIONS = (
    pack,
    unpack,
    mask_by_scores,
    mask_by_bits,
    scores_grad,
    adamw,
    importance,
    accumulate,
    multi_task_product,
    activate,
)


def main() -> None:
    """Runs the kernels of every instruction set that this processor has."""
    if sys.argv[1:2] == ["--short"]:
        next(function for function in FUNCTIONS if function.__name__ == sys.argv[2])(1)
        return
    for isa in kernels.instruction_sets():
        kernels.use_instruction_set(isa)
        for function in FUNCTIONS:
            function(0)
    print(*(function.__name__ for function in FUNCTIONS))


if __name__ == "__main__":
    main()
