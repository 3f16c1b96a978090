"""Checksums over all values of tensors, to distinguish different weights of the same sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tss.io import sha256

CHUNK = 2**17
"""Number of 64-bit words that are multiplied at a time."""
WIDTHS = {torch.float64: 3, torch.float32: 2, torch.bfloat16: 1, torch.float16: 1}
Checksums = dict[str, dict[str, str]]
"""Tensor -> dtype -> checksum of its values in that dtype: its own, and narrower ones that a cast may give."""


def checksum(tensor: torch.Tensor) -> str:
    """Return 16 hexadecimal digits over all bytes of a tensor on any device; a change of a single value changes them.

    Sums 64-bit words times odd random numbers, modulo 2**64: one pass, at memory bandwidth. For a subclass that is made
    of other tensors, such as torchao's quantized weights, the digits are computed from the checksums of its parts.
    """
    if flatten := getattr(tensor, "__tensor_flatten__", None):
        parts = [f"{name} {checksum(getattr(tensor, name))}" for name in flatten()[0]]
        return sha256(f"{type(tensor).__name__}|{tuple(tensor.shape)}|{parts}")[:16]
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if rest := flat.numel() % 8:
        flat = torch.cat([flat, flat.new_zeros(8 - rest)])
    words, sha = flat.view(torch.int64), hashlib.sha256(f"{tensor.dtype}|{tuple(tensor.shape)}".encode())
    factors = _factors(words.device)
    sums = [(words[i : i + CHUNK] * factors[: min(CHUNK, len(words) - i)]).sum() for i in range(0, len(words), CHUNK)]
    if sums:
        sha.update(torch.stack(sums).cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


class Fingerprints:
    """Cache of the checksums of named tensors; recomputes those of tensors that were written to."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, dict[str, str]]] = {}

    def of(self, tensors: Mapping[str, torch.Tensor], *, fresh: bool = False) -> Checksums:
        """Return checksums by name, without those of tensors that are offloaded (on the meta device) or sharded.

        Args:
            tensors: name -> tensor.
            fresh: recompute all: version counters miss writes through `.data`.
        """
        found: Checksums = {}
        for name, tensor in tensors.items():
            if tensor.is_meta or is_sharded(tensor):
                continue
            # Inference tensors do not count writes.
            version = (tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, tensor.dtype)
            known = self._known.get(name)
            if fresh or tensor.is_inference() or known is None or known[0] != version:
                known = self._known[name] = (version, _by_dtype(tensor))
            found[name] = known[1]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_known": {}}  # a copy's tensors have other addresses


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether each process holds a part of the tensor (a DTensor), as FSDP leaves parameters between calls."""
    return hasattr(tensor, "full_tensor")


def backbone_tensors(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, each once, sorted by name."""
    tensors: dict[str, torch.Tensor] = dict(backbone.named_parameters())
    for prefix, module in backbone.named_modules():
        kept = set(module._buffers) - module._non_persistent_buffers_set
        named = {f"{prefix}.{name}" if prefix else name: module._buffers[name] for name in kept}
        tensors |= {name: buffer for name, buffer in named.items() if buffer is not None}
    return {name: tensors[name].detach() for name in sorted(tensors)}


def differing(saved: Mapping[str, Mapping[str, str]], here: Checksums) -> str | None:
    """Return the first tensor whose values differ, in the widest dtype that both sides have; None if none does."""
    order = [str(dtype) for dtype in sorted(WIDTHS, key=lambda dtype: -WIDTHS[dtype])]
    for name, now in here.items():
        then = saved.get(name, {})
        common = sorted(then.keys() & now.keys(), key=lambda dtype: order.index(dtype) if dtype in order else -1)
        if then and (not common or then[common[0]] != now[common[0]]):
            return name
    return None


def _by_dtype(tensor: torch.Tensor) -> dict[str, str]:
    known = 0 if hasattr(tensor, "__tensor_flatten__") else WIDTHS.get(tensor.dtype, 0)  # not cast if quantized
    narrower = [dtype for dtype, width in WIDTHS.items() if width < known]
    return {str(dtype): checksum(tensor.to(dtype)) for dtype in (tensor.dtype, *narrower)}


_kept_factors: dict[torch.device, torch.Tensor] = {}


def _factors(device: torch.device) -> torch.Tensor:
    if device not in _kept_factors:
        drawn = torch.randint(-(2**62), 2**62, (CHUNK,), generator=torch.Generator().manual_seed(0))
        _kept_factors[device] = (2 * drawn + 1).to(device)
    return _kept_factors[device]
