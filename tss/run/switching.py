"""Time to switch tasks: from selecting another finished task until a call has all that it runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tss.adapters.task_choice import ACTIVE
from tss.run.runtime import wait

if TYPE_CHECKING:
    from tss.adapters import TssHandle

ROUNDS = 20
"""Times that each task is selected; a few suffice for a median, and each takes microseconds."""


def time_to_switch(handle: TssHandle, tasks: Sequence[str], device: torch.device) -> float:
    """Return the median seconds from selecting a task to having what a call runs, going round all tasks.

    What a call runs are the task's gates or own weights, if it has any, and its head; whatever a method reads or copies
    for that counts, the forward pass does not. The active task and all random states are as before.

    Args:
        handle: handle of the model.
        tasks: at least two sealed tasks.
        device: device of the model.
    """
    seconds = []
    with handle.using(tasks[0]):
        for _ in range(ROUNDS):
            for task in tasks:
                wait(device)
                started = time.perf_counter()
                handle.use(task)
                handle.resolve(ACTIVE)
                wait(device)
                seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
