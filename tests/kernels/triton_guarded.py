"""Runs every Triton kernel on inputs that end where memory that may not be touched begins: a read past the end of a
tensor ends the process. Run as a script, with TRITON_INTERPRET=1, on Linux."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch

PAGE = mmap.PAGESIZE
NO_ACCESS = 0  # PROT_NONE, which the mmap module does not name
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
ROOMS: list[mmap.mmap] = []  # kept: a room that is unmapped would take its tensor along


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy whose last byte is the last one before a page without access."""
    size = tensor.numel() * tensor.element_size()
    usable = -(-size // PAGE) * PAGE
    room = mmap.mmap(-1, usable + PAGE)
    ROOMS.append(room)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    if LIBC.mprotect(start + usable, PAGE, NO_ACCESS):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = torch.frombuffer(room, dtype=tensor.dtype, count=tensor.numel(), offset=usable - size)
    return copy.view(tensor.shape).copy_(tensor)


def main() -> None:
    """All kernels at ragged and at even sizes; `--past-the-end` gives one too few scores, to show that it is seen."""
    from tss_kernels.adamw.triton import soft_masked_adamw_
    from tss_kernels.gated_linear.triton import forward, input_grad, scores_grad

    if "--past-the-end" in sys.argv:
        forward(torch.ones(3, 5), torch.ones(7, 5), guarded(torch.ones(7, 4)), None, 0.0)
    for dtype in (torch.float32, torch.bfloat16):
        for rows, in_features, out_features in ((3, 5, 7), (33, 70, 65), (31, 48, 80)):
            x, dy = (
                guarded(torch.randn(rows, in_features).to(dtype)),
                guarded(torch.randn(rows, out_features).to(dtype)),
            )
            weight = guarded(torch.randn(out_features, in_features).to(dtype))
            scores = guarded(torch.randn(out_features, in_features))
            importance = guarded(torch.rand(out_features, in_features))
            _, packed = forward(x, weight, scores, guarded(dy[0]), 0.0)
            input_grad(dy, weight, guarded(packed))
            scores_grad(dy, x, weight, importance)
    for site in ("gradient", "update"):
        lists = [[guarded(torch.rand(size)) for size in (3, 1024, 1500)] for _ in range(5)]
        soft_masked_adamw_(*lists, step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, site=site)
    print("nothing was read past its end")


if __name__ == "__main__":
    main()
