"""Verification of zero forgetting: nothing that a sealed task's predictions depend on has changed by a single bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from tss.errors import ForgettingError
from tss.run.run_state import SealedTask
from tss.run.runtime import Runtime

if TYPE_CHECKING:
    from tss.adapters import TssHandle
    from tss.methods.base import Batch


def logits_hash(handle: TssHandle, task: str, batch: Batch, runtime: Runtime) -> str:
    """Return the SHA-256 of a task's logits (shape, dtype and bytes) for a batch, in evaluation mode.

    For generation these are the teacher-forced logits of the batch's labels.
    """
    handle.model.eval()
    with handle.using(task), torch.no_grad(), runtime.autocast():
        logits = handle.model(**runtime.to_device(batch)).logits.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(logits.shape)} {logits.dtype}".encode())
    digest.update(memoryview(logits.view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()


def verify(
    handle: TssHandle, sealed: Sequence[SealedTask], frozen: str, probes: Mapping[str, Batch], runtime: Runtime
) -> None:
    """Compare every sealed task with what it was when it was sealed.

    Args:
        handle: handle of the model with the tasks.
        sealed: the recorded hashes of each task.
        frozen: fingerprint of the frozen weights when the run began.
        probes: task -> its probe batch.
        runtime: device and precision, as when the probes were hashed.

    Raises:
        ForgettingError: something changed; the message names the task and what changed.
    """
    for task in sealed:
        _compare(handle.fingerprint(task.name), task.fingerprint, f"gates or head of sealed task {task.name}")
    if not runtime.processes.in_step:  # no process has all of a sharded backbone; probes cover it
        _compare(handle.frozen_fingerprint(), frozen, "frozen weights of the backbone or the adapters")
    for task in sealed:
        found = logits_hash(handle, task.name, probes[task.name], runtime)
        _compare(found, task.probe, f"logits of sealed task {task.name} on its probe batch")


def _compare(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise ForgettingError(
            f"forgetting: the {what} changed (SHA-256 {found}, sealed as {expected}); the run stops here and keeps "
            "what was finished. Something wrote to a sealed or frozen tensor, or the device computes differently now"
        )
