"""The pass over a task's training data that its importance is taken from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tss.errors import TssError

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle
    from tss.adapters.record import TaskRecord

BATCH = 32
LENGTH = 128


def losses_of(handle: TssHandle, record: TaskRecord, data: Any) -> Iterator[torch.Tensor]:
    """One differentiable loss per batch, in evaluation mode (no dropout); the mode is restored after.

    Raises:
        TssError: a batch without labels, or a loss that is not finite.
    """
    training = handle.model.training
    handle.model.eval()
    try:
        with torch.enable_grad():
            for i, batch in enumerate(_batches(handle, record, data)):
                inputs = {key: v.to(handle.device) if isinstance(v, torch.Tensor) else v for key, v in batch.items()}
                if inputs.get("labels") is None:
                    raise TssError(f"seal_task: batch {i} has no labels, only {', '.join(inputs)}; add them")
                loss = handle.model(**inputs).loss
                if not math.isfinite(float(loss.detach())):
                    raise TssError(
                        f"seal_task: the loss of batch {i} of {record.name} is {float(loss.detach())}, so no "
                        "importance can be taken; lower the learning rate or check the data"
                    )
                yield loss
    finally:
        handle.model.train(training)


def _batches(handle: TssHandle, record: TaskRecord, data: Any) -> Iterable[dict[str, Any]]:
    raw = isinstance(data, Sequence) and bool(data) and isinstance(data[0], dict)
    raw = raw and not any(isinstance(value, torch.Tensor) for value in data[0].values())
    if not raw:
        yield from data
        return
    if handle.tokenizer is None:
        raise TssError("seal_task got raw examples; set model.tss.tokenizer, or give batches of tensors")
    encoded = record.kind.encode_all(data, handle.tokenizer, source_length=LENGTH, target_length=LENGTH)
    for start in range(0, len(encoded), BATCH):
        yield record.kind.collate(encoded[start : start + BATCH], pad_id=handle.tokenizer.pad_token_id or 0)
