"""MTL, multi-task learning: one set of plain adapters learns all tasks at once; a reference for sequential learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tss.methods.base import Method

if TYPE_CHECKING:
    from tss.adapters import TssHandle
    from tss.tasks.base import TaskKind


class Mtl(Method):
    """Upper bound of methods that share their adapters: no task is past, so nothing can be forgotten.

    Every task has its own head, and makes as many optimizer steps, on the same batches, as in a sequence. Each step is
    of one task; a task's steps are spread evenly over the whole training, so that tasks alternate in proportion to
    their numbers of steps. MTL needs the data of all tasks at once, which continual learning does not have.
    """

    name = "mtl"
    gated = False
    never_forgets = False
    joint = True

    def begin_tasks(self, handle: TssHandle, kinds: Mapping[str, TaskKind]) -> None:
        for name, kind in kinds.items():
            handle.add_task(name, kind)
        handle.train_tasks(list(kinds))
