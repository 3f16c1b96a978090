"""Estimate the time and memory of a run by timing real steps with its own backbone and data."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tss.data import TaskData
from tss.run.config import RunConfig
from tss.run.examples import by_length, cache_prefix, collate, encode_split
from tss.run.folder import RunFolder
from tss.run.loop import Job, backward, steps_per_epoch, validate
from tss.run.prepare import Run, open_run
from tss.run.runtime import Runtime

SLOW_STEP = 20.0
"""Seconds; a first step that takes longer is used as the measurement: another one would only make the user wait."""


@dataclass(frozen=True)
class FamilyEstimate:
    """Estimate for one family: the timed task, and the seconds for all tasks of the family."""

    family: str
    task: str
    step_seconds: float
    steps: int
    training: float
    evaluation: float


@dataclass(frozen=True)
class Estimate:
    """Estimate for a whole run: `seconds` is the sum over families, `peak_bytes` the peak memory of the timed steps."""

    families: list[FamilyEstimate]
    backbone: str
    parameters: int
    precision: str
    device: str
    peak_bytes: int
    how: str

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation of all tasks."""
        return sum(row.training + row.evaluation for row in self.families)


def estimate(config: RunConfig) -> Estimate:
    """Open the run in a temporary folder, and time two steps and one test batch for each family.

    The family's task with the most training examples is timed on its longest rows, so that time and memory are
    overestimated rather than underestimated; times of other tasks are scaled by their steps and test examples.

    Raises:
        TssError: any error that would stop the run itself before its first step.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tss-check-") as folder,
        open_run(config, RunFolder(Path(folder) / "run"), resume=False, listener=None) as run,
    ):
        rows = [_time_family(run, family) for family in dict.fromkeys(task.family for task in run.tasks)]
        return Estimate(
            rows,
            run.backbone.origin,
            run.backbone.parameters,
            run.runtime.precision,
            str(run.runtime.device),
            run.runtime.peak_bytes(),
            "two training steps after one to warm up, validation and one test batch per family, on this machine, on "
            "the longest rows of the largest task; scaled by steps, epochs and test examples",
        )


def _time_family(run: Run, family: str) -> FamilyEstimate:
    members = [task for task in run.tasks if task.family == family]
    task = max(members, key=lambda member: len(member.train))
    step, per_example = _time_task(run, task)
    steps, training, evaluation = 0, 0.0, 0.0
    for member in members:
        settings = run.settings[member.name]
        of_member = settings.epochs * steps_per_epoch(len(member.train), settings)
        decodes = not (member.kind.kind == "generation" and settings.validate_by in ("auto", "loss"))
        # validation by loss costs about a third of a training step's time per example: no backward pass
        per_validation = per_example if decodes else step / settings.batch_size / settings.grad_accumulation / 3
        steps += of_member
        training += of_member * step + settings.epochs * len(member.validation) * per_validation
        times = _times_tested(run, run.tasks.index(member))
        evaluation += times * len(member.test) * per_example
    return FamilyEstimate(family, task.name, step, steps, training, evaluation)


def _times_tested(run: Run, place: int) -> int:
    """Return how many times the task at a position of the sequence is tested."""
    after = 0 if run.method.joint else len(run.tasks) - 1 - place
    if run.method.never_forgets and run.config.reevaluate == "last":
        after = min(after, 1)
    # zero-shot evaluation also tests every task before any training, and after the task before it
    return 1 + after + ((1 + (place > 0)) if run.config.zero_shot else 0)


def _time_task(run: Run, task: TaskData) -> tuple[float, float]:
    """Return (seconds of an optimizer step, seconds per example of testing)."""
    tokenizer, settings = run.backbone.tokenizer, run.settings[task.name]
    run.method.begin_task(run.handle, task.name, task.kind)
    kept = (
        task.kind,
        tokenizer,
        run.runtime,
        run.handle,
        settings.eval_batch_size,
    )  # as in the run, so that memory is the same too
    train, validation = (
        cache_prefix(encode_split(examples, task.kind, tokenizer, settings), *kept)
        for examples in (task.train, task.validation)
    )
    job = Job(
        name=task.name,
        index=0,
        kind=task.kind,
        settings=settings,
        train=train,
        validation=validation,
        handle=run.handle,
        method=run.method,
        tokenizer=tokenizer,
        runtime=run.runtime,
        seed=run.config.seed,
        log=run.log,
    )
    seconds = _time_steps(job)
    with run.handle.using(task.name):
        validate(job)  # its batches have other sizes, for which the CPU keeps memory in addition to the others
    tested = _time_test(run, task)
    run.handle.abandon()
    return seconds, tested


def _time_steps(job: Job) -> float:
    """Return the mean seconds of two optimizer steps on the longest rows, after a warm-up step."""
    optimizer = job.method.make_optimizer(job.handle, job.settings)
    longest = by_length(job.train, job.settings.batch_size)[: job.settings.grad_accumulation]
    job.handle.model.train()
    times: list[float] = []
    while len(times) < 3 and not (times and times[0] > SLOW_STEP):
        started = time.perf_counter()
        backward(job, longest, 0, len(times))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(job.runtime)
        times.append(time.perf_counter() - started)
    return statistics.mean(times[1:] or times)


def _time_test(run: Run, task: TaskData) -> float:
    """Return the seconds per example of the longest test batch."""
    tokenizer = run.backbone.tokenizer
    test = run.test(task)
    rows = by_length(test, run.settings[task.name].eval_batch_size)[0]
    batch = collate(test, rows, task.kind, tokenizer, run.runtime)
    run.handle.model.eval()
    started = time.perf_counter()
    with run.handle.using(task.name), torch.no_grad(), run.runtime.autocast():
        task.kind.predict(run.handle.model, batch, tokenizer, examples=[task.test[i] for i in rows])
    _wait(run.runtime)
    return (time.perf_counter() - started) / len(rows)


def _wait(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
