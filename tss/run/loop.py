"""One task's training, from its first batch to its best state restored."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from tss.data import batches
from tss.errors import TssError
from tss.methods.base import Method
from tss.run.checkpoint import Position, Saved, restore_optimizer
from tss.run.config import TaskSettings
from tss.run.evaluate import evaluate, mean_loss
from tss.run.events import EventLog
from tss.run.examples import Split, collate
from tss.run.runtime import Runtime
from tss.seeding import seed_of
from tss.tasks.base import TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tss.adapters import TssHandle

Checkpoint = Callable[[Position, torch.optim.Optimizer], None]


@dataclass
class Job:
    """One task to be learned, and all that learning it needs."""

    name: str
    index: int
    kind: TaskKind
    settings: TaskSettings
    train: Split
    validation: Split
    handle: TssHandle
    method: Method
    tokenizer: PreTrainedTokenizerBase
    runtime: Runtime
    seed: int
    log: EventLog
    first_gates: dict[str, torch.Tensor] = field(default_factory=dict)
    """Packed gates that the task starts from, by layer; empty where adapters have no gates."""
    step_seconds: list[float] = field(default_factory=list)
    """Duration of every optimizer step in this process."""

    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return steps_per_epoch(len(self.train), self.settings)

    def groups(self, epoch: int) -> list[list[list[int]]]:
        """The epoch's optimizer steps: for each, its batches of row numbers."""
        rows = batches(self.train.lengths(), self.settings.batch_size, seed=self.seed, task=self.name, epoch=epoch)
        size = self.settings.grad_accumulation
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def median_step_seconds(self) -> float | None:
        """Median duration of a step, None if this process made none."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


def steps_per_epoch(examples: int, settings: TaskSettings) -> int:
    """Optimizer steps for one pass over so many examples."""
    return math.ceil(math.ceil(examples / settings.batch_size) / settings.grad_accumulation)


def schedule(step: int, total: int, warmup: int) -> float:
    """Share of the peak learning rate at a step (from 0): up over `warmup` steps, down to 0 at `total`, both linear."""
    if step < warmup:
        return step / warmup
    return (total - step) / max(1, total - warmup)


def learn(job: Job, checkpoint: Checkpoint, saved: Saved | None = None) -> Position:
    """Train the task that the handle is learning, and restore its best state by validation.

    Args:
        job: the task.
        checkpoint: called after every optimizer step; saves when one is due.
        saved: where to go on; None starts from the first step.
    """
    optimizer = job.method.make_optimizer(job.handle, job.settings)
    position = Position()
    if saved is not None:
        position = saved.position
        job.handle.load_learning_state(saved.learning)
        restore_optimizer(optimizer, saved.optimizer)
    patience = job.settings.patience
    while position.epoch < job.settings.epochs and (patience is None or position.stale < patience):
        train_epoch(job, optimizer, position, checkpoint)
        finish_epoch(job, position)
    if position.best:
        job.handle.load_learning_state(position.best)
    return position


def train_epoch(job: Job, optimizer: torch.optim.Optimizer, position: Position, checkpoint: Checkpoint) -> None:
    """The optimizer steps of an epoch that `position` has not done yet."""
    per_epoch = job.steps_per_epoch()
    total = job.settings.epochs * per_epoch
    warmup = math.ceil(total * job.settings.warmup_ratio)
    peaks = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    job.handle.model.train()
    for step, group in enumerate(job.groups(position.epoch)):
        if step < position.step:
            continue
        started = time.perf_counter()
        share = schedule(position.epoch * per_epoch + step, total, warmup)
        for parameters, peak in zip(optimizer.param_groups, peaks, strict=True):
            parameters["lr"] = peak * share
        loss = backward(job, group, position.epoch, step)
        optimizer.step()
        check_finite(job, position.epoch, step)
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        job.step_seconds.append(seconds)
        position.step, position.loss_sum = step + 1, position.loss_sum + loss
        position.seconds += seconds
        job.log.emit(
            "step",
            task=job.name,
            index=job.index,
            epoch=position.epoch,
            step=step,
            loss=loss,
            score_lr=optimizer.param_groups[0]["lr"],
            seconds=round(seconds, 4),
        )
        checkpoint(position, optimizer)


def check_finite(job: Job, epoch: int, step: int) -> None:
    """Raise TssError if a step made a score or a weight that is not finite: a NaN reads as a gate that is off."""
    trained: list[torch.Tensor] = []
    for group in job.handle.trainable_parameters().values():
        trained += group
    largest = torch.stack(torch._foreach_norm(trained, math.inf))
    if not largest.isfinite().all():
        raise TssError(
            f"task {job.name}: a score or a weight is not finite after epoch {epoch}, step {step}; finished tasks are "
            f"kept. Lower score_lr ({job.settings.score_lr}) or head_lr ({job.settings.head_lr}) for this task, or use "
            f"precision=float32 (now {job.runtime.precision})"
        )


def backward(job: Job, group: list[list[int]], epoch: int, step: int) -> float:
    """Accumulate the gradients of one optimizer step's batches; gives their mean loss.

    Raises:
        TssError: if a loss is not finite; nothing was updated with it.
    """
    total = 0.0
    for part, rows in enumerate(group):
        # dropout depends on the place in the sequence alone, so no generator's state has to be kept for a resume
        torch.manual_seed(seed_of(job.seed, job.name, epoch, step, part))
        batch = collate(job.train, rows, job.kind, job.tokenizer, job.runtime)
        with job.runtime.autocast():
            loss = job.handle.loss(**batch)
            penalty = job.method.penalty(job.handle, batch)
        if penalty is not None:
            loss = loss + penalty
        value = loss.item()
        if not math.isfinite(value):
            raise TssError(
                f"task {job.name}: the loss is {value} at epoch {epoch}, step {step}; finished tasks are kept. "
                f"Lower score_lr ({job.settings.score_lr}) or head_lr ({job.settings.head_lr}) for this task, or use "
                f"precision=float32 (now {job.runtime.precision})"
            )
        (loss / len(group)).backward()
        total += value / len(group)
    return total


def finish_epoch(job: Job, position: Position) -> None:
    """Validate, keep the state if it is strictly better than the best so far, and move on to the next epoch."""
    started = time.perf_counter()
    value, metric = validate(job)
    higher_is_better = -value if metric == "loss" else value
    if position.best_value is None or higher_is_better > position.best_value:
        position.best_value, position.best_epoch, position.stale = higher_is_better, position.epoch, 0
        position.best = {name: tensor.detach().clone() for name, tensor in job.handle.learning_state().items()}
    else:
        position.stale += 1
    job.log.emit(
        "epoch",
        task=job.name,
        index=job.index,
        epoch=position.epoch,
        loss=position.loss_sum / position.step,
        validation=value,
        metric=metric,
        density=job.handle.density(),
        flipped=job.handle.flipped(job.first_gates),
    )
    position.seconds += time.perf_counter() - started
    position.epoch, position.step, position.loss_sum = position.epoch + 1, 0, 0.0


def validate(job: Job) -> tuple[float, str]:
    """The value that chooses the best epoch, and its name: a metric (higher is better) or "loss" (lower is)."""
    by = job.settings.validate_by
    if by == "auto":
        by = "loss" if job.kind.kind == "generation" else "metric"
    arguments = (job.handle.model, job.kind, job.validation, job.tokenizer)
    size = job.settings.eval_batch_size
    if by == "loss":
        return mean_loss(*arguments, batch_size=size, runtime=job.runtime), "loss"
    metric = job.kind.main_metric
    return evaluate(*arguments, batch_size=size, runtime=job.runtime).metrics[metric], metric
