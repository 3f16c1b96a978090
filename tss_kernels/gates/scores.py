"""Scores that remember the gates last made from them, for as long as nothing has changed them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tss_kernels.dispatch import select

# Backends that read gates as bits; the reference compares scores in less time than it would unpack bits.
READ_BITS = ("native", "triton", "cuda")


class _Kept(NamedTuple):
    """Packed gates, and what must be as it was for them to hold."""

    packed: torch.Tensor
    threshold: float
    state: tuple[object, ...]


class Scores(nn.Parameter):
    """A float32 parameter (out, in) of popup scores, with the gates of its present values at hand once they are known.

    Gates are kept under PyTorch's version counters: of the parameter, and of what `.data` gives, which counts for
    itself. Optimizers that write past the counters (torch's fused ones do) are followed by a hook on their step. Gates
    are kept for one stream, and no longer once a CUDA graph was captured with the scores, since its replays change
    tensors unseen. What writes to their memory and tells PyTorch nothing must call `forget_gates`.
    """

    _alias: torch.Tensor | None = None
    _kept: _Kept | None = None
    _threshold: float | None = None
    _captured: bool = False

    def __new__(cls, data: torch.Tensor, requires_grad: bool = True) -> Scores:
        _follow_optimizers()
        return super().__new__(cls, data, requires_grad)  # type: ignore[return-value]

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """The values without gradient; always the same tensor, whose version counter tells of writes through it."""
        raw = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        alias = self._alias
        if alias is None or alias.data_ptr() != raw.data_ptr() or alias.shape != raw.shape or alias.dtype != raw.dtype:
            alias = self._alias = raw
            self.forget_gates()
        return alias

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        self._alias = None
        self.forget_gates()
        torch.Tensor.data.__set__(self, values)  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Files hold a plain parameter: they need neither this class nor the gates.
        values = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return nn.Parameter(values, self.requires_grad).__reduce_ex__(protocol)

    def forget_gates(self) -> None:
        """Make the next use compare the scores anew."""
        self._notice_capture()
        self._kept = None

    def wants_gates(self) -> float | None:
        """The threshold of the gates that are worth emitting with the next step, None if none are."""
        threshold = self._threshold
        if (
            threshold is None
            or self._notice_capture()
            or not _reuses(self, select("gated_linear", self.device, self.dtype))
        ):
            return None
        return threshold

    def keep_gates(self, threshold: float, packed: torch.Tensor) -> None:
        """Remember packed uint8 (out, ceil(in / 8)) as the gates of the values that the scores have now."""
        # Tensors of inference mode cannot be saved for a backward pass, those of a tracer are no data.
        if self._notice_capture() or packed.is_inference() or type(packed) is not torch.Tensor:
            return
        self._threshold = threshold
        self._kept = _Kept(packed, threshold, self._state())

    def kept_gates(self, threshold: float) -> torch.Tensor | None:
        """The packed gates of the present values if they are known, else None."""
        if self._notice_capture():
            return None
        kept = self._kept
        if kept is None or kept.threshold != threshold or kept.state != self._state():
            return None
        return kept.packed

    def _notice_capture(self) -> bool:
        """Whether a CUDA graph holds these scores: it is being captured now, or was."""
        if self.is_cuda and torch.cuda.is_current_stream_capturing():
            self._captured = True
        return self._captured

    def _state(self) -> tuple[object, ...]:
        alias = self._alias
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.is_cuda else 0
        return self._version, 0 if alias is None else alias._version, self.data_ptr(), stream


def kept_gates(scores: torch.Tensor, threshold: float, backend: str) -> torch.Tensor | None:
    """The packed gates of scores that a backend may use in place of the scores, None if it must compare them."""
    if not _reuses(scores, backend):
        return None
    return scores.kept_gates(threshold)  # type: ignore[attr-defined]


def keep_gates(scores: torch.Tensor, threshold: float, backend: str, packed: torch.Tensor) -> None:
    """Remember the packed gates that a backend made from scores, where that is of use."""
    if _reuses(scores, backend):
        scores.keep_gates(threshold, packed)  # type: ignore[attr-defined]


def _reuses(scores: torch.Tensor, backend: str) -> bool:
    # A compiled graph would freeze what was known while it was traced.
    return backend in READ_BITS and not torch.compiler.is_compiling() and isinstance(scores, Scores)


@functools.cache
def _follow_optimizers() -> None:
    """Have the gates of scores forgotten after every step of any torch optimizer; set up with the first scores."""
    register_optimizer_step_post_hook(_forget_stepped)


def _forget_stepped(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    del args, kwargs
    # Compiled steps count what they write, and so do optimizers that say so.
    if torch.compiler.is_compiling() or getattr(optimizer, "counts_writes", False):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, Scores):
                parameter.forget_gates()
