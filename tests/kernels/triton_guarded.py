"""Runs every Triton kernel on tensors that end where memory that may not be touched begins: an access past the end of
an input, an output or a workspace ends the process.

Run as a script, with TRITON_INTERPRET=1, on Linux; it names the kernels that it ran. `--short FAMILY` makes one tensor
of that family smaller than its kernels believe, to show that it is seen.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable

import torch

PAGE = mmap.PAGESIZE
NO_ACCESS = 0  # PROT_NONE, which the mmap module does not name
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
ROOMS: list[mmap.mmap] = []  # kept: a room that is unmapped would take its tensor along
EMPTY = torch.empty


def guarded_empty(*shape: int, dtype: torch.dtype = torch.float32, device: object = None) -> torch.Tensor:
    """`torch.empty` whose last byte is the last one before a page without access."""
    del device
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape  # type: ignore[arg-type]
    count = math.prod(sizes)
    if count == 0:
        return EMPTY(sizes, dtype=dtype)
    size = count * dtype.itemsize
    usable = -(-size // PAGE) * PAGE
    room = mmap.mmap(-1, usable + PAGE)
    ROOMS.append(room)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    if LIBC.mprotect(start + usable, PAGE, NO_ACCESS):
        raise OSError(ctypes.get_errno(), "mprotect")
    return torch.frombuffer(room, dtype=dtype, count=count, offset=usable - size).view(sizes)


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy whose last byte is the last one before a page without access."""
    return guarded_empty(tuple(tensor.shape), dtype=tensor.dtype).copy_(tensor)


def gated_linear(short: int) -> None:
    """Products by scores and by bits, both ways of masking, both gradients; short: so many scores less in a row."""
    from tss_kernels.gated_linear import triton

    for dtype in (torch.float32, torch.bfloat16):
        for rows, in_features, out_features in ((3, 5, 7), (33, 70, 65), (31, 96, 80), (130, 48, 80)):
            x, dy = (guarded(torch.randn(rows, size).to(dtype)) for size in (in_features, out_features))
            weight, bias = guarded(torch.randn(out_features, in_features).to(dtype)), guarded(dy[0])
            scores = guarded(torch.randn(out_features, in_features - short))
            importance = guarded(torch.rand(out_features, in_features))
            for strategy in ("fused", "materialise"):
                _, packed = triton.forward(x, weight, scores, bias, 0.0, strategy)
                triton.packed_linear(x, weight, packed, bias, strategy)
                triton.input_grad(dy, weight, packed, strategy)
                triton.scores_grad(dy, x, weight, importance, strategy)


def gated_adapter(short: int) -> None:
    """Both passes, by bytes and by words of gates, keeping the hidden values or their inputs; short: of a bias."""
    from tss_kernels.gated_adapter import triton

    for dtype in (torch.float32, torch.bfloat16):
        for rows, features, bottleneck, activation in ((3, 5, 7, "relu"), (33, 70, 96, "gelu"), (31, 96, 48, "tanh")):
            x, dy = (guarded(torch.randn(rows, features).to(dtype)) for _ in range(2))
            down, up = (
                guarded(torch.randn(shape).to(dtype)) for shape in ((bottleneck, features), (features, bottleneck))
            )
            down_bits, up_bits = (
                guarded(torch.randint(256, (weight.shape[0], math.ceil(weight.shape[1] / 8)), dtype=torch.uint8))
                for weight in (down, up)
            )
            biases = guarded(torch.randn(bottleneck - short).to(dtype)), guarded(torch.randn(features).to(dtype))
            _, hidden = triton.forward(x, down, down_bits, up, up_bits, *biases, activation)
            for for_x in (True, False):
                triton.input_grad(dy, hidden, down, down_bits, up, up_bits, activation, for_x)


def multi_task(short: int) -> None:
    """Both operations and their gradients, by bytes and by words of gates; short: of a bias."""
    from tss_kernels.multi_task import triton

    for dtype in (torch.float32, torch.bfloat16):
        for length, features, bottleneck, activation in ((1, 5, 7, "relu"), (3, 70, 96, "gelu"), (40, 96, 48, "tanh")):
            x = guarded(torch.randn(4, length, features).to(dtype))
            down, up = (
                guarded(torch.randn(shape).to(dtype)) for shape in ((bottleneck, features), (features, bottleneck))
            )
            banks = [
                guarded(torch.randint(256, (3, weight.shape[0], math.ceil(weight.shape[1] / 8)), dtype=torch.uint8))
                for weight in (down, up)
            ]
            ids = guarded(torch.tensor([2, 0, 2, 2]))
            biases = guarded(torch.randn(bottleneck - short).to(dtype)), guarded(torch.randn(features).to(dtype))
            y = triton.linear(x, down, banks[0], ids, biases[0])
            triton.linear_input_grad(guarded(y), down, banks[0], ids)
            y, hidden = triton.adapter(x, down, banks[0], up, banks[1], ids, *biases, activation)
            triton.adapter_input_grad(guarded(y), hidden, down, banks[0], up, banks[1], ids, activation)


def gates(short: int) -> None:
    """Packing of one and of two matrices, and unpacking; short: that many bytes less in a row."""
    from tss_kernels.gates import triton

    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((3, 5), (9, 300), (8, 256)):
            scores = guarded(torch.randn(shape).to(dtype))
            triton.pack_gates_pair(scores, guarded(scores.t()), 0.0)
            packed = triton.pack_gates(scores, 0.0)
            triton.unpack_gates(guarded(packed[:, short:]), shape[1])


def importance(short: int) -> None:
    """Both statistics, in one chunk and in several, and both maxima; short: that many elements less in the total."""
    from tss_kernels.importance import triton

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for per, shape in (("tensor", (3, 1500)), ("row", (3, 700)), ("row", (3, 2100))):
            raw = guarded(torch.randn(shape).to(dtype))
            triton.accumulate_importance_(guarded(torch.rand(shape).to(dtype)), raw)
            triton.normalize_importance(raw, per)
            triton.update_importance_(guarded(torch.rand(shape[0] * shape[1] - short)), raw, per)


def adamw(short: int) -> None:
    """The step at both sites, of several shapes; short: that many elements less in an importance."""
    from tss_kernels.adamw.triton import soft_masked_adamw_

    options = {"step": 1, "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    for site in ("gradient", "update"):
        for shapes in ([(3,), (1024,), (1500,)], [(3, 5), (16, 64), (33, 40), (9, 121), (1500,)]):
            lists = [[guarded(torch.rand(shape)) for shape in shapes] for _ in range(4)]
            softs = [guarded(torch.rand(math.prod(shape) - short)) for shape in shapes]
            softs[1] = None
            soft_masked_adamw_(*lists, softs, **options, site=site)


# A family is one function: it runs all kernels of a folder, and with `short` above 0 one tensor is too small for them.
FAMILIES: dict[str, Callable[[int], None]] = {
    "gated_linear": gated_linear,
    "gated_adapter": gated_adapter,
    "multi_task": multi_task,
    "gates": gates,
    "importance": importance,
    "adamw": adamw,
}


def main() -> None:
    """All families, or the one that is to fail."""
    from tss_kernels.backends import triton as _triton

    launch, ran = _triton.launch, set()

    def noted(kernel: object, *arguments: object, **constants: object) -> None:
        ran.add(kernel.fn.__name__)  # type: ignore[attr-defined]
        launch(kernel, *arguments, **constants)  # type: ignore[arg-type]

    # Before the backends' files are imported, which take `launch` by its name. Outputs and workspaces come from these.
    _triton.launch = noted
    torch.empty = guarded_empty
    torch.empty_like = lambda like: guarded_empty(tuple(like.shape), dtype=like.dtype)
    if "--short" in sys.argv:
        FAMILIES[sys.argv[-1]](1)
    else:
        for family in FAMILIES.values():
            family(0)
    print(*sorted(ran))


if __name__ == "__main__":
    main()
