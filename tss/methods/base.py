"""Hooks that distinguish the methods of continual learning; the loop calls them and knows no method by name."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from tss.adapters.config import PlainOptions, TssOptions

if TYPE_CHECKING:
    import torch

    from tss.adapters import TssHandle
    from tss.tasks.base import TaskKind

Batch = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class NoOptions:
    """Options of methods that have none."""


class LearningRates(Protocol):
    """Training settings of a task that `make_optimizer` reads."""

    @property
    def score_lr(self) -> float: ...
    @property
    def adapter_lr(self) -> float: ...
    @property
    def head_lr(self) -> float: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def eps(self) -> float: ...


class Method(ABC):
    """Method for learning a sequence of tasks on adapters.

    A method object lives as long as a run. For each task, the runner calls `begin_tasks`, `make_optimizer`, then
    `begin_step` before every optimizer step and `penalty` for every batch of it, and at the end `end_task`; `state` is
    saved between tasks and loaded with `load_state` on resume.
    """

    name: ClassVar[str]
    options_type: ClassVar[type] = NoOptions
    """Frozen dataclass of the method's options; the configuration checks `method_options` against it."""
    gated: ClassVar[bool]
    """True: adapters with frozen weights and trained gates; False: plain trained adapters of the same shapes."""
    never_forgets: ClassVar[bool]
    """True: the runner verifies after every task that no sealed task changed, and stops the run if one did."""
    joint: ClassVar[bool] = False
    """True: all tasks are learned together, and only the last row of the matrix of results is measured."""

    averages_importance: ClassVar[bool] = False
    """True: in a run of several processes, `end_task` gets this process's part of the batches and averages over all
    processes; False: every process gets all batches."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def layer_options(self) -> TssOptions:
        """Return the options for `tss.attach`: how tasks are learned in the adapters."""
        return TssOptions() if self.gated else PlainOptions()

    def begin_task(self, handle: TssHandle, name: str, kind: TaskKind) -> None:
        """Add the task and make its parameters trainable."""
        handle.add_task(name, kind)
        handle.train_task(name)

    def begin_tasks(self, handle: TssHandle, kinds: Mapping[str, TaskKind]) -> None:
        """Begin one task, or all of them (name -> kind) if the method is `joint`; the runner calls this."""
        for name, kind in kinds.items():
            self.begin_task(handle, name, kind)

    def make_optimizer(self, handle: TssHandle, rates: LearningRates) -> torch.optim.Optimizer:
        """Create an optimizer over the trainable parameters; the groups' `lr` are the peaks of the schedule."""
        rate = rates.score_lr if self.gated else rates.adapter_lr
        if rates.optimizer == "sgd":
            import torch  # imported here, because configurations are checked without torch

            peaks = {"scores": rate, "head": rates.head_lr}
            groups = handle.trainable_parameters().items()
            return torch.optim.SGD([{"name": k, "params": params, "lr": peaks[k]} for k, params in groups if params])
        return handle.optimizer(score_lr=rate, head_lr=rates.head_lr, betas=(rates.beta1, rates.beta2), eps=rates.eps)

    def begin_step(self, handle: TssHandle, step: int, steps: int) -> None:  # noqa: B027 (most have nothing to do)
        """Prepare optimizer step `step` (from 0) of the `steps` in an epoch. A resumed run passes the same values."""

    def penalty(self, handle: TssHandle, batch: Batch) -> torch.Tensor | None:
        """Return a scalar that is added to the loss of a batch, or None.

        The batch also has "prefix_states" if the run caches the hidden states before the first adapter.
        """
        return None

    def end_task(self, handle: TssHandle, name: str, batches: Iterable[Batch]) -> None:
        """Seal the task in its restored best state; `batches` is one pass over its training data, maybe unused."""
        handle.seal_task(name=name)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the method itself keeps between tasks, besides the handle's shared state."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load a result of `state`."""
        if state:
            raise ValueError(f"method {self.name} has no state of its own, got {sorted(state)}")


def adapter_weights(handle: TssHandle) -> dict[str, torch.nn.Parameter]:
    """Return the trained parameters except the heads, by names that are the same in every process."""
    return {name: p for adapter in handle.adapters.values() for name, p in adapter.trained().items()}
