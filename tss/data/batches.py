"""Which examples go into which batch."""

from __future__ import annotations

from collections.abc import Sequence

from tss.seeding import stream

POOL = 32  # batches that are sorted by length together


def batches(lengths: Sequence[int], batch_size: int, *, seed: int, task: str, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every index exactly once, neighbours in length together, in random order.

    Examples are shuffled, taken in pools of 32 batches, sorted by length inside a pool, cut into batches, and the
    batches are shuffled. So padding is little, and still every epoch mixes anew. Only the last pool's last batch may be
    smaller than `batch_size`.

    A pure function of its arguments. The stream hangs on (seed, task, epoch) alone, so another task in the sequence
    changes nothing here.

    Args:
        lengths: length of each example, in tokens.
        batch_size: examples per batch, at least 1.
        seed: of the run.
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
