"""What a run will cost, found by timing real steps on its own backbone and data."""

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
"""Seconds after which a first step is taken as the measurement: a second one would only make the user wait."""


@dataclass(frozen=True)
class FamilyEstimate:
    """One family: what was timed, and the seconds that all its tasks would take by it."""

    family: str
    task: str
    step_seconds: float
    steps: int
    training: float
    evaluation: float


@dataclass(frozen=True)
class Estimate:
    """A whole run: `seconds` is the sum over families, `peak_bytes` what the timed steps needed."""

    families: list[FamilyEstimate]
    backbone: str
    parameters: int
    precision: str
    device: str
    peak_bytes: int
    how: str

    @property
    def seconds(self) -> float:
        """Training and evaluation of all tasks."""
        return sum(row.training + row.evaluation for row in self.families)


def estimate(config: RunConfig) -> Estimate:
    """Opens the run in a folder that is thrown away, and times two steps and one test batch for each family.

    The task of a family with the most training examples is timed, on the longest rows of its data, so that time and
    memory are rather over- than underestimated; its other tasks are scaled by their steps and test examples.

    Raises:
        TssError: whatever would stop the run itself before its first step.
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
    """How often the task at a place of the sequence is tested."""
    after = 0 if run.method.joint else len(run.tasks) - 1 - place
    if run.method.never_forgets and run.config.reevaluate == "last":
        after = min(after, 1)
    # with zero-shot evaluation every task is tested untrained too, and after the task before its own
    return 1 + after + ((1 + (place > 0)) if run.config.zero_shot else 0)


def _time_task(run: Run, task: TaskData) -> tuple[float, float]:
    """(seconds of an optimizer step, seconds per example of testing)."""
    tokenizer, settings = run.backbone.tokenizer, run.settings[task.name]
    run.method.begin_task(run.handle, task.name, task.kind)
    kept = (
        task.kind,
        tokenizer,
        run.runtime,
        run.handle,
        settings.eval_batch_size,
    )  # as in the run, for its memory too
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
        validate(job)  # its batches are of other sizes, which a processor's memory keeps beside the others
    tested = _time_test(run, task)
    run.handle.abandon()
    return seconds, tested


def _time_steps(job: Job) -> float:
    """Mean seconds of two optimizer steps on the longest rows, after one that warms up."""
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
    """Seconds per example of one test batch, the longest one."""
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
