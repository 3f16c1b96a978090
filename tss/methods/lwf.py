"""LwF: while shared adapters learn a task, a penalty keeps past tasks' outputs on its inputs near what they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tss.adapters.config import check_above
from tss.methods.base import Batch, Method

if TYPE_CHECKING:
    import torch

    from tss.adapters import TssHandle
    from tss.tasks.base import TaskKind


@dataclass(frozen=True)
class LwfOptions:
    """Options of LwF.

    Attributes:
        strength: factor of the distillation loss, which is added to the task's own; the paper's is 1.
        temperature: divides the logits of teacher and student; the paper's is 2.

    Raises:
        ValueError: names the option and its value.
    """

    strength: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check_above("LwfOptions", "strength", self.strength, 0)
        check_above("LwfOptions", "temperature", self.temperature, 0)


class Lwf(Method):
    """LwF of Li and Hoiem, TPAMI 2018 (arXiv 1606.09282), on the plain adapters that all tasks share.

    The teacher is a frozen copy of the adapters from when the task began. On every batch of the new task, the logits of
    the past tasks' heads are compared between the teacher and the live adapters: the Kullback-Leibler divergence at the
    temperature, times the temperature squared, averaged over rows (extraction: over real tokens) and added up over
    tasks. Heads differ from task to task, so each is distilled separately. Past generation tasks share the language
    model's head and so one distribution, compared at every token of the new task's targets, or of its sources if it has
    no targets. Teacher and student run without dropout, so that the loss measures only what training has changed. Past
    heads are sealed and stay unchanged; the paper continues to train them.

    The implementation of Avalanche is for its own training loop and outputs of one shape, so heads of several kinds on
    shared features are implemented here.
    """

    name = "lwf"
    options_type = LwfOptions
    gated = False
    never_forgets = False

    def __init__(self, options: LwfOptions) -> None:
        super().__init__(options)
        self._teacher: list[tuple[torch.Tensor, ...]] = []

    def begin_task(self, handle: TssHandle, name: str, kind: TaskKind) -> None:
        """Begin the task and copy the teacher; a resume inside a task calls this before loading the task's state."""
        super().begin_task(handle, name, kind)
        sites = (adapter.trained().values() for adapter in handle.adapters.values())
        self._teacher = [tuple(weight.detach().clone() for weight in weights) for weights in sites]

    def penalty(self, handle: TssHandle, batch: Batch) -> torch.Tensor | None:
        from tss.methods.distillation import distillation_loss  # a configuration is checked without torch

        past = [name for name, record in handle.tasks.items() if record.state == "sealed"]
        if not past:
            return None
        return self.options.strength * distillation_loss(handle, past, self._teacher, batch, self.options.temperature)
