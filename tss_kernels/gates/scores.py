"""Scores that remember the gates last made from them, for as long as nothing has changed them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tss_kernels.dispatch import select
from tss_kernels.watched import Watched

# Backends that read gates as bits; the reference compares scores in less time than it would unpack bits.
READ_BITS = ("native", "triton", "cuda")


class _Kept(NamedTuple):
    """Packed gates, and what must be as it was for them to hold."""

    packed: torch.Tensor
    threshold: float
    state: tuple[object, ...]


class Scores(Watched):
    """A float32 parameter (out, in) of popup scores, with the gates of its present values at hand once they are known.

    Gates are kept while the parameter's state says that nothing has changed it, for one stream, and no longer once a
    CUDA graph was captured with the scores, since its replays change tensors unseen. What writes to their memory and
    tells PyTorch nothing must call `forget_gates`.
    """

    _kept: _Kept | None = None
    _threshold: float | None = None
    _captured: bool = False

    def note_write(self) -> None:
        """Something wrote to the scores, or may have: their gates are forgotten."""
        super().note_write()
        self.forget_gates()

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
        # Tensors of inference mode cannot be saved for a backward pass, those of a tracer or a transform are no data.
        if (
            self._notice_capture()
            or packed.is_inference()
            or self.is_inference()
            or type(packed) is not torch.Tensor
            or torch._C._are_functorch_transforms_active()
        ):
            return
        self._threshold = threshold
        self._kept = _Kept(packed, threshold, self._state())

    @property
    def emits_for(self) -> float | None:
        """`wants_gates` of scores on the CPU, for a backend that reads bits."""
        return self._threshold

    def keep_emitted(self, threshold: float, packed: torch.Tensor) -> None:
        """`keep_gates` of scores on the CPU, for new memory that a step wrote."""
        self._kept = _Kept(packed, threshold, self.state())

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
        if not self.is_cuda:
            return self.state()
        return *self.state(), torch.cuda.current_stream(self.device).cuda_stream


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
