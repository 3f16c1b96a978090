"""Training of one task, from its first batch to restoring its best state."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from tss.data import batches
from tss.errors import TssError
from tss.methods.base import Method
from tss.run.checkpoint import Checkpoint, TaskProgress, restore_optimizer
from tss.run.config import TaskSettings
from tss.run.evaluate import evaluate_with_loss, mean_loss
from tss.run.events import EventLog
from tss.run.examples import Split, collate, label_counts
from tss.run.runtime import Runtime
from tss.seeding import seed_of
from tss.tasks.base import TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tss.adapters import TssHandle

SavePlace = Callable[[TaskProgress, torch.optim.Optimizer], None]


@dataclass
class Job:
    """Task to train, and everything that training it needs."""

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
    """Packed gates that the task starts from, by layer; empty if adapters have no gates."""
    first_scores: dict[str, torch.Tensor] = field(default_factory=dict)
    """Scores that the task starts from, likewise."""
    last_good: str = "its beginning"
    """Where a resume would continue, in words for messages."""
    step_seconds: list[float] = field(default_factory=list)
    """Duration of every optimizer step in this process."""

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps in one epoch."""
        return steps_per_epoch(len(self.train), self.settings)

    def groups(self, epoch: int) -> list[list[list[int]]]:
        """Return the epoch's optimizer steps: for each, its batches of row indices."""
        rows = batches(self.train.lengths(), self.settings.batch_size, seed=self.seed, task=self.name, epoch=epoch)
        size = self.settings.grad_accumulation
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def steps(self) -> int:
        """Return the number of optimizer steps of the whole task, if it does not stop early."""
        return self.settings.epochs * self.steps_per_epoch()

    def median_step_seconds(self) -> float | None:
        """Return the median duration of a step, None if this process made none."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


def steps_per_epoch(examples: int, settings: TaskSettings) -> int:
    """Return the number of optimizer steps for one pass over this many examples."""
    return math.ceil(math.ceil(examples / settings.batch_size) / settings.grad_accumulation)


def schedule(step: int, total: int, warmup: int) -> float:
    """Return the fraction of the peak learning rate at a step.

    It rises linearly from 0 over `warmup` steps, then falls linearly to 0 at `total`; steps are counted from 0.
    """
    if step < warmup:
        return step / warmup
    return (total - step) / max(1, total - warmup)


def learn(job: Job, save: SavePlace, place: Checkpoint | None = None) -> TaskProgress:
    """Train the task that the handle is training, and restore its best state by validation.

    Args:
        job: the task.
        save: called after every optimizer step; saves a checkpoint when one is due.
        place: checkpoint to resume from; None starts from the first step.

    Raises:
        TssError: a loss, a gradient, a score, a weight or a validation value is not finite.
    """
    optimizer = job.method.make_optimizer(job.handle, job.settings)
    progress = TaskProgress()
    if place is not None:
        progress = place.progress
        job.handle.load_learning_state(place.learning)
        restore_optimizer(optimizer, place.optimizer)
    patience = job.settings.patience
    while progress.epoch < job.settings.epochs and (patience is None or progress.stale < patience):
        train_epoch(job, optimizer, progress, save)
        finish_epoch(job, progress)
    if progress.best:
        job.handle.load_learning_state(progress.best)
    return progress


def train_epoch(job: Job, optimizer: torch.optim.Optimizer, progress: TaskProgress, save: SavePlace) -> None:
    """Run the remaining optimizer steps of the current epoch."""
    per_epoch = job.steps_per_epoch()
    total = job.settings.epochs * per_epoch
    warmup = math.ceil(total * job.settings.warmup_ratio)
    peaks = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    job.handle.model.train()
    for step, group in enumerate(job.groups(progress.epoch)):
        if step < progress.step:
            continue
        started = time.perf_counter()
        share = schedule(progress.epoch * per_epoch + step, total, warmup)
        for parameters, peak in zip(optimizer.param_groups, peaks, strict=True):
            parameters["lr"] = peak * share
        job.method.begin_step(job.handle, step, per_epoch)
        loss = backward(job, group, progress.epoch, step)
        optimizer.step()
        check_finite(job, progress.epoch, step)
        if step == 0 and progress.epoch == 0:
            progress.unused = unused_layers(job.handle)
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        progress.step, progress.loss_sum = step + 1, progress.loss_sum + loss
        progress.seconds += seconds
        tell_step(job, progress.epoch, step, loss, optimizer.param_groups[0]["lr"], seconds)
        save(progress, optimizer)


def tell_step(job: Job, epoch: int, step: int, loss: float, rate: float, seconds: float) -> None:
    """Log an optimizer step, its loss and the learning rate of the scores (plain adapters: of the weights)."""
    job.step_seconds.append(seconds)
    job.log.emit(
        "step",
        task=job.name,
        index=job.index,
        epoch=epoch,
        step=step,
        loss=loss,
        score_lr=rate,
        seconds=round(seconds, 4),
    )


def check_finite(job: Job, epoch: int, step: int) -> None:
    """Raise TssError if a step had a gradient, or produced a score or a weight, that is not finite.

    A NaN score acts as a gate that is off, and would silently be trained further, sealed and inherited. Gradients whose
    square is not finite count too: Adam keeps squares, and would never update such an entry again.
    """
    trained = [parameter for group in job.handle.trainable_parameters().values() for parameter in group]
    stepped = [*(p.detach() for p in trained), *(p.grad for p in trained if p.grad is not None)]
    largest = torch.stack(torch._foreach_norm(stepped, math.inf)).float()
    if not (largest * largest).isfinite().all():
        raise not_finite(job, "a gradient, a score or a weight is not finite", epoch, step)


def not_finite(job: Job, what: str, epoch: int, step: int | None = None) -> TssError:
    """Return the error, which names the position in training, what is kept, and the remedies."""
    rates = {"score_lr": job.settings.score_lr, "head_lr": job.settings.head_lr}
    if not job.method.gated:
        rates = {"adapter_lr": job.settings.adapter_lr, "head_lr": job.settings.head_lr}
    lower = " or ".join(f"{key} (now {value:g})" for key, value in rates.items())
    where = f"epoch {epoch}" if step is None else f"epoch {epoch}, step {step}"
    precision = (
        "" if job.runtime.precision == "float32" else f", or use precision=float32 (now {job.runtime.precision})"
    )
    return TssError(
        f"task {job.name}: {what} at {where}. Finished tasks are kept, and so is the last good state of this one "
        f"({job.last_good}), from which --resume continues. To train this task differently, resume with a lower "
        f"{lower}: --resume overrides.{job.name}.{next(iter(rates))}=VALUE{precision}"
    )


def unused_layers(handle: TssHandle) -> list[str]:
    """Return adapter layers that the last backward pass did not reach, such as a decoder's if a head reads the encoder.

    Call it before gradients are cleared.
    """
    trained = {name: layer.scores if handle.config.gated else layer.weight for name, layer in handle.layers.items()}
    return [name for name, parameter in trained.items() if parameter.grad is None]


def of_used(values: dict[str, float], unused: Container[str]) -> dict[str, float]:
    """Return the values, by layer, of the layers that a task uses: in the others, nothing can change."""
    return {name: value for name, value in values.items() if name not in unused}


def backward(job: Job, group: list[list[int]], epoch: int, step: int) -> float:
    """Accumulate the gradients of one optimizer step's batches, and return their mean loss.

    Raises:
        TssError: a loss is not finite; nothing was updated with it.
    """
    total, processes = torch.zeros((), dtype=torch.float32), job.runtime.processes
    for part, rows in enumerate(group):
        # dropout depends on the position in the sequence alone, so a resume needs no saved generator state
        torch.manual_seed(
            seed_of(job.seed, job.name, epoch, step, part, *((processes.rank,) if processes.rank else ()))
        )
        batch = collate(job.train, processes.rows(rows), job.kind, job.tokenizer, job.runtime)
        with job.runtime.autocast():
            loss = job.handle.loss(**batch)
            penalty = job.method.penalty(job.handle, batch)
        if penalty is not None:
            loss = loss + penalty
        loss = loss * (processes.share(label_counts(job.train, rows)) / len(group))
        if processes.count == 1:  # several processes must all reach the reduction below, and check there
            _check_loss(job, loss.item() * len(group), epoch, step)
        loss.backward()
        total = total.to(loss.device) + loss.detach()
    trained = [parameter for parameters in job.handle.trainable_parameters().values() for parameter in parameters]
    value = processes.add(total, [p.grad for p in trained if p.grad is not None])
    _check_loss(job, value, epoch, step)
    return value


def _check_loss(job: Job, value: float, epoch: int, step: int) -> None:
    if not math.isfinite(value):
        raise not_finite(job, f"the loss is {value}", epoch, step)


def finish_epoch(job: Job, progress: TaskProgress) -> None:
    """Validate, keep the state if it is better than the best so far, and move on to the next epoch.

    Among epochs with the same metric, the one with the lowest validation loss is the best, so that a metric that is 0
    for some epochs, or at its maximum, does not choose the first of them. Only a better metric resets the patience.
    """
    started = time.perf_counter()
    value, loss, metric = validate(job)
    if not math.isfinite(value):
        raise not_finite(job, f"the validation {metric} is {value}", progress.epoch)
    keep_best(job, progress, -value if metric == "loss" else value, loss)
    tell_epoch(job, progress, progress.loss_sum / progress.step, (value, loss, metric))
    progress.seconds += time.perf_counter() - started
    progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0


def keep_best(job: Job, progress: TaskProgress, value: float, loss: float) -> None:
    """Keep the learning state if its value is higher than the best so far, or the same with a lower loss."""
    best, best_loss = progress.best_value, progress.best_loss
    better = best is None or value > best
    tied = value == best and (best_loss is None or loss < best_loss)
    progress.stale = 0 if better else progress.stale + 1
    if better or tied:
        progress.best_value, progress.best_loss, progress.best_epoch = value, loss, progress.epoch
        progress.best = {name: tensor.detach().clone() for name, tensor in job.handle.learning_state().items()}


def tell_epoch(job: Job, progress: TaskProgress, trained: float, validated: tuple[float, float, str]) -> None:
    """Log the mean training loss of an epoch, and the result of `validate` after it."""
    value, loss, metric = validated
    job.log.emit(
        "epoch",
        task=job.name,
        index=job.index,
        epoch=progress.epoch,
        loss=trained,
        validation=value,
        validation_loss=loss,
        metric=metric,
        density=of_used(job.handle.density(), progress.unused),
        flipped=of_used(job.handle.flipped(job.first_gates), progress.unused),
    )


def chosen_by(kind: TaskKind, settings: TaskSettings) -> str:
    """Return what chooses the best epoch: "loss", or the name of the main metric."""
    by = settings.validate_by
    if by == "auto":
        by = "loss" if kind.kind == "generation" else "metric"
    return "loss" if by == "loss" else kind.main_metric


def validate(job: Job) -> tuple[float, float, str]:
    """Return the value that chooses the best epoch, the loss, and the name of the value.

    The name is that of a metric (higher is better) or "loss" (lower is better); then both values are the loss.
    """
    by = chosen_by(job.kind, job.settings)
    arguments = (job.handle.model, job.kind, job.validation, job.tokenizer)
    size = job.settings.eval_batch_size
    if by == "loss":
        loss = mean_loss(*arguments, batch_size=size, runtime=job.runtime)
        return loss, loss, by
    result, loss = evaluate_with_loss(*arguments, batch_size=size, runtime=job.runtime)
    return result.metrics[by], loss, by
