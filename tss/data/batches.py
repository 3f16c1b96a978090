"""Assignment of examples to batches."""

from __future__ import annotations

from collections.abc import Sequence

from tss.seeding import stream

POOL = 32  # batches that are sorted by length together


def batches(lengths: Sequence[int], batch_size: int, *, seed: int, task: str, epoch: int) -> list[list[int]]:
    """Return the batches of one epoch: each index exactly once, similar lengths together, in random order.

    Examples are shuffled, divided into pools of 32 batches, sorted by length within each pool and cut into batches; the
    batches are then shuffled. This keeps padding small while each epoch is mixed differently. Only the last batch of
    the last pool may be smaller than `batch_size`.

    A pure function of its arguments. The random stream depends on (seed, task, epoch) only, so other tasks in the
    sequence do not change the result.

    Args:
        lengths: length of each example, in tokens.
        batch_size: examples per batch, at least 1.
        seed: seed of the run.
        task: name of the task.
        epoch: counted from 0.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    rng = stream("batches", seed, task, epoch)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    size = POOL * batch_size
    pools = [sorted(order[i : i + size], key=lengths.__getitem__) for i in range(0, len(order), size)]
    cut = [pool[i : i + batch_size] for pool in pools for i in range(0, len(pool), batch_size)]
    rng.shuffle(cut)
    return cut
