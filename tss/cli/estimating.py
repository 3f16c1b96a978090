"""Estimate the time and memory of a run by timing real steps with its own backbone and data."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tss.data import TaskData
from tss.methods.base import Batch
from tss.run.checkpoint import TaskProgress
from tss.run.config import RunConfig
from tss.run.evaluate import evaluate
from tss.run.examples import Split, by_length, collate
from tss.run.folder import RunFolder
from tss.run.jobs import begin_tasks
from tss.run.loop import Job, backward, keep_best, steps_per_epoch, validate
from tss.run.prepare import Run, open_run
from tss.run.runtime import wait

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


@dataclass(frozen=True)
class _Times:
    """Measured seconds of one task: of an optimizer step, of testing an example, and of sealing, for each batch."""

    task: str
    step: float
    tested: float
    sealed: float
    seals_by_batch: bool
    """False: sealing does not read the data, and `sealed` are the seconds for the whole task."""


def estimate(config: RunConfig) -> Estimate:
    """Go through the sequence in a temporary folder, and time a few steps and batches of each family.

    The family's task with the most training examples is timed on its longest rows, in the place of the family's last
    task, after tasks of all families that come before: their outputs or weights can be a part of a method's steps. So
    time and memory are overestimated rather than underestimated. Times of the other tasks are scaled by their steps and
    examples.

    Raises:
        TssError: any error that would stop the run itself before its first step.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tss-check-") as folder,
        open_run(config, RunFolder(Path(folder) / "run"), resume=False, listener=None) as run,
    ):
        found, peak = _time_together(run) if run.method.joint else _time_sequence(run)
        rows = [_estimate_family(run, family, found[family]) for family in _families(run)]
        return Estimate(
            rows,
            run.backbone.origin,
            run.backbone.parameters,
            run.runtime.precision,
            str(run.runtime.device),
            peak,
            "two training steps after one to warm up, validation, sealing and one test batch per family, after tasks "
            "of earlier families, on this machine, on the longest rows of the largest task; scaled by steps, epochs "
            "and examples",
        )


def _families(run: Run) -> dict[str, list[TaskData]]:
    """Return family -> its tasks, in the order of the sequence."""
    found: dict[str, list[TaskData]] = {}
    for task in run.tasks:
        found.setdefault(task.family, []).append(task)
    return found


def _time_sequence(run: Run) -> tuple[dict[str, _Times], int]:
    """Time the largest task of each family in the place of its last one, and return the peak memory too."""
    times, peak = {}, 0
    members = _families(run)
    for task in run.tasks:
        of_family = members[task.family]
        largest = max(of_family, key=lambda member: len(member.train))
        if task is of_family[-1]:
            times[task.family] = _time_task(run, largest)
        elif task is of_family[0]:  # a past task, for those that come after it
            _learn_briefly(run, next(one for one in of_family if one is not largest))
        peak = max(peak, run.runtime.peak_bytes())
    return times, peak


def _time_task(run: Run, task: TaskData) -> _Times:
    """Begin a task, time its steps, and finish it."""
    (job,) = begin_tasks(run, [run.tasks.index(task)])
    step, progress = _time_steps(job), TaskProgress()
    _validate(job, progress)
    return _finish(run, job, step)


def _learn_briefly(run: Run, task: TaskData) -> None:
    """Begin a task, make one step, and seal it."""
    (job,) = begin_tasks(run, [run.tasks.index(task)])
    _time_steps(job, most=1)
    _seal(run, job)


def _time_together(run: Run) -> tuple[dict[str, _Times], int]:
    """Time the largest task of each family while all tasks are trained together, and return the peak memory too."""
    jobs = begin_tasks(run, range(len(run.tasks)))
    largest = {name: max(tasks, key=lambda task: len(task.train)) for name, tasks in _families(run).items()}
    timed = {name: next(job for job in jobs if job.name == task.name) for name, task in largest.items()}
    steps, progress = {}, TaskProgress()
    for family, job in timed.items():
        with run.handle.using(job.name):
            steps[family] = _time_steps(job)
            _validate(job, progress)
    times = {family: _finish(run, job, steps[family]) for family, job in timed.items()}
    return times, run.runtime.peak_bytes()


def _estimate_family(run: Run, family: str, times: _Times) -> FamilyEstimate:
    steps, training, evaluation = 0, 0.0, 0.0
    for member in _families(run)[family]:
        settings = run.settings[member.name]
        of_member = settings.epochs * steps_per_epoch(len(member.train), settings)
        decodes = not (member.kind.kind == "generation" and settings.validate_by in ("auto", "loss"))
        # validation by loss costs about a third of a training step's time per example: no backward pass
        per_validation = times.tested if decodes else times.step / settings.batch_size / settings.grad_accumulation / 3
        steps += of_member
        training += of_member * times.step + settings.epochs * len(member.validation) * per_validation
        training += times.sealed * (math.ceil(len(member.train) / settings.batch_size) if times.seals_by_batch else 1)
        tests = _times_tested(run, run.tasks.index(member))
        evaluation += tests * len(member.test) * times.tested
    return FamilyEstimate(family, times.task, times.step, steps, training, evaluation)


def _times_tested(run: Run, place: int) -> int:
    """Return how many times the task at a position of the sequence is tested."""
    after = 0 if run.method.joint else len(run.tasks) - 1 - place
    if run.method.never_forgets and run.config.reevaluate == "last":
        after = min(after, 1)
    # zero-shot evaluation also tests every task before any training, and after the task before it
    return 1 + after + ((1 + (place > 0)) if run.config.zero_shot else 0)


def _validate(job: Job, progress: TaskProgress) -> None:
    """Validate a task and keep a copy of the trained state, as after an epoch."""
    value, loss, _ = validate(job)  # its batches have other sizes, for which the CPU keeps memory too
    progress.best_value = None  # so that this state is kept, whatever an earlier one scored
    keep_best(job, progress, value, loss)


def _finish(run: Run, job: Job, step: float) -> _Times:
    """Seal and test a task whose steps were timed."""
    sealed, by_batch = _seal(run, job)
    return _Times(job.name, step, _time_test(run, run.tasks[job.index]), sealed, by_batch)


def _seal(run: Run, job: Job) -> tuple[float, bool]:
    """Seal a task with its longest batch; return the seconds, and whether the batch was read."""
    read = 0

    def longest() -> Iterator[Batch]:
        nonlocal read
        for rows in by_length(job.train, job.settings.batch_size)[:1]:
            read += 1
            yield collate(job.train, rows, job.kind, job.tokenizer, job.runtime)

    started = time.perf_counter()
    with run.runtime.autocast():
        run.method.end_task(run.handle, job.name, longest())
    wait(run.runtime.device)
    return time.perf_counter() - started, read > 0


def _time_steps(job: Job, most: int = 3) -> float:
    """Return the mean seconds of two optimizer steps on the longest rows, after a warm-up step.

    Args:
        job: task that is being trained.
        most: maximum number of steps.
    """
    optimizer = job.method.make_optimizer(job.handle, job.settings)
    longest = by_length(job.train, job.settings.batch_size)[: job.settings.grad_accumulation]
    job.handle.model.train()
    times: list[float] = []
    while len(times) < most and not (times and times[0] > SLOW_STEP):
        started = time.perf_counter()
        job.method.begin_step(job.handle, len(times), most)
        backward(job, longest, 0, len(times))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(job.runtime.device)
        times.append(time.perf_counter() - started)
    return statistics.mean(times[1:] or times)


def _time_test(run: Run, task: TaskData) -> float:
    """Return the seconds per example of predicting and scoring the longest test batch."""
    split, size = run.test(task), run.settings[task.name].eval_batch_size
    rows = by_length(split, size)[0]
    longest = Split([split.examples[i] for i in rows], [split.encoded[i] for i in rows])
    started = time.perf_counter()
    with run.handle.using(task.name):  # scores too: the libraries that they need take memory
        evaluate(run.handle.model, task.kind, longest, run.backbone.tokenizer, batch_size=size, runtime=run.runtime)
    wait(run.runtime.device)
    return (time.perf_counter() - started) / len(rows)
