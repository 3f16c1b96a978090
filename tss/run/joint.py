"""Joint training of several tasks, from the first batch to restoring the best state by all their validations."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from tss.run.checkpoint import Checkpoint, TaskProgress, restore_optimizer
from tss.run.loop import (
    Job,
    SavePlace,
    backward,
    check_finite,
    keep_best,
    not_finite,
    schedule,
    tell_epoch,
    tell_step,
    validate,
)

Round = list[tuple[int, int]]
"""Optimizer steps in order, each as (index of its task, number of steps of this task before it)."""


def rounds(steps: Sequence[int], count: int) -> list[Round]:
    """Return all steps of all tasks, each task's spread evenly, in `count` rounds with equal parts of each task.

    Args:
        steps: number of steps of each task.
        count: number of rounds.
    """
    # step k of n is at (2k + 1) / 2n; at equal positions, tasks keep their order
    order = sorted(((2 * k + 1) / (2 * n), i, k) for i, n in enumerate(steps) for k in range(n))
    made: list[Round] = [[] for _ in range(count)]
    for _, i, k in order:
        made[k * count // steps[i]].append((i, k))
    return made


class Together:
    """Tasks that are trained together, and the order of their steps.

    There are as many rounds as the task with the most epochs has epochs; after each, all tasks are validated. Batches,
    dropout and learning rates of a task's steps are those that it would have in a sequence.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self.rounds = rounds([job.steps() for job in jobs], max(job.settings.epochs for job in jobs))
        self._batches: dict[str, tuple[int, list[list[list[int]]]]] = {}

    def done(self, progress: TaskProgress) -> int:
        """Return the number of optimizer steps made so far."""
        return sum(map(len, self.rounds[: progress.epoch])) + progress.step

    def batches(self, job: Job, step: int) -> tuple[list[list[int]], int, int]:
        """Return the batches of rows of a task's step, its epoch, and its index in the epoch."""
        epoch, place = divmod(step, job.steps_per_epoch())
        if self._batches.get(job.name, (None,))[0] != epoch:
            self._batches[job.name] = epoch, job.groups(epoch)
        return self._batches[job.name][1][place], epoch, place


def learn_together(together: Together, save: SavePlace, place: Checkpoint | None = None) -> TaskProgress:
    """Train the tasks that the handle is training together, and restore the best state by their validations.

    No task stops early, as the other tasks need its steps.

    Args:
        together: the tasks.
        save: called after every optimizer step; saves a checkpoint when one is due.
        place: checkpoint to resume from; None starts from the first step.

    Raises:
        TssError: a loss, a gradient, a weight or a validation value is not finite.
    """
    first = together.jobs[0]
    optimizer = first.method.make_optimizer(first.handle, first.settings)
    progress = TaskProgress()
    if place is not None:
        progress = place.progress
        first.handle.load_learning_state(place.learning)
        restore_optimizer(optimizer, place.optimizer)
    settings = [_groups(job) for job in together.jobs]
    while progress.epoch < len(together.rounds):
        _train_round(together, optimizer, settings, progress, save)
        _finish_round(together, progress)
    first.handle.load_learning_state(progress.best)
    return progress


def _groups(job: Job) -> list[dict[str, Any]]:
    """Return the task's own settings of the optimizer's groups; its learning rates are the peaks of its schedule."""
    made = job.method.make_optimizer(job.handle, job.settings)
    return [{key: group[key] for key in ("lr", "betas", "eps") if key in group} for group in made.param_groups]


def _train_round(
    together: Together,
    optimizer: torch.optim.Optimizer,
    settings: list[list[dict[str, Any]]],
    progress: TaskProgress,
    save: SavePlace,
) -> None:
    """Run the remaining optimizer steps of the current round."""
    together.jobs[0].handle.model.train()
    for number, (i, done) in enumerate(together.rounds[progress.epoch]):
        if number < progress.step:
            continue
        started = time.perf_counter()
        job = together.jobs[i]
        share = schedule(done, job.steps(), math.ceil(job.steps() * job.settings.warmup_ratio))
        for group, own in zip(optimizer.param_groups, settings[i], strict=True):
            group.update(own, lr=own["lr"] * share)
        rows, epoch, step = together.batches(job, done)
        job.method.begin_step(job.handle, step, job.steps_per_epoch())
        with job.handle.using(job.name):
            loss = backward(job, rows, epoch, step)
        optimizer.step()
        check_finite(job, epoch, step)
        optimizer.zero_grad(set_to_none=True)  # without a gradient, the heads of other tasks are not updated
        seconds = time.perf_counter() - started
        progress.step, progress.seconds = number + 1, progress.seconds + seconds
        progress.loss_sums[job.name] = progress.loss_sums.get(job.name, 0.0) + loss
        tell_step(job, epoch, step, loss, optimizer.param_groups[0]["lr"], seconds)
        save(progress, optimizer)


def _finish_round(together: Together, progress: TaskProgress) -> None:
    """Validate all tasks, keep the state if it is the best so far, and move on to the next round.

    States are compared by the mean over tasks of what chooses a task's best epoch in a sequence, as points from 0 to
    100: its metric, or, for a task whose best epoch its loss chooses, the probability of a label, 100 * exp(-loss).
    """
    started = time.perf_counter()
    points, losses = [], []
    made = [sum(i == own for own, _ in together.rounds[progress.epoch]) for i in range(len(together.jobs))]
    for job, steps in zip(together.jobs, made, strict=True):
        with job.handle.using(job.name):
            value, loss, metric = validate(job)
        if not math.isfinite(value):
            raise not_finite(job, f"the validation {metric} is {value}", progress.epoch)
        points.append(100 * math.exp(-value) if metric == "loss" else value)
        losses.append(loss)
        if steps:  # a task with fewer steps than rounds has none in some rounds
            tell_epoch(job, progress, progress.loss_sums[job.name] / steps, (value, loss, metric))
    keep_best(together.jobs[0], progress, _mean(points), _mean(losses))
    progress.seconds += time.perf_counter() - started
    progress.epoch, progress.step, progress.loss_sums = progress.epoch + 1, 0, {}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
