"""Sequence of tasks: train a task, seal it, verify that none was forgotten, save it, evaluate all; then the next."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tss.adapters import saving
from tss.data import TaskData, batches
from tss.io import sha256, to_json
from tss.methods.base import Batch
from tss.run.advice import after_training, before_training
from tss.run.checkpoint import TaskProgress
from tss.run.config import RunConfig
from tss.run.evaluate import Evaluation, evaluate
from tss.run.events import Listener
from tss.run.examples import collate
from tss.run.folder import RunFolder
from tss.run.invariants import logits_hash, verify
from tss.run.jobs import begin_tasks
from tss.run.joint import Together, learn_together
from tss.run.layers import importance_mean, moved
from tss.run.loop import Job, chosen_by, learn, of_used, steps_per_epoch
from tss.run.prepare import Run, open_run
from tss.run.processes import ALONE, joined, own_folder
from tss.run.results import RunResult, matrix_content
from tss.run.run_state import SealedTask
from tss.run.runtime import disk_errors, memory_errors
from tss.run.switching import time_to_switch
from tss.run.zero_shot import metrics_now
from tss.tasks.base import IGNORED


@dataclass(frozen=True)
class Sealed:
    """Task sealed in memory, and the seconds that sealing took.

    Attributes:
        density, flipped, moved: by layer, the fractions of gates that are on and that changed since training started,
            and the mean absolute change of the scores.
    """

    task: SealedTask
    density: dict[str, float]
    flipped: dict[str, float]
    moved: dict[str, float]
    seconds: float


def run_sequence(
    config: RunConfig, folder: Path | str, *, resume: bool = False, progress: Listener | None = None
) -> RunResult:
    """Train a sequence of tasks and write a run folder.

    Started by `torchrun` or `accelerate launch`, all processes call this with the same arguments; each computes its
    part of every batch, and the first one writes the folder.

    Args:
        config: configuration of the run.
        folder: folder of the run; must not contain a run, unless `resume`.
        resume: continue the run in the folder, bit for bit as if it had never stopped.
        progress: called with every event, for example `tss.run.progress.Console()`.

    Raises:
        ConfigError, DataError: before anything is trained.
        StateError: the folder cannot be used, a saved file is damaged, or the disk is full.
        ForgettingError: a sealed task changed.
        TssError: a loss is not finite, or memory runs out. Whatever was finished is kept.
    """
    with (
        joined(config.device) as processes,
        own_folder(Path(folder), resume=resume) as own,
        disk_errors(own),
        open_run(config, RunFolder(own), resume=resume, listener=progress if processes.first else None) as run,
    ):
        begin(run)
        for indices in turns(run):
            if indices[0] == len(run.state.sealed):
                finish_tasks(run, indices)
            evaluate_tasks(run, indices[-1])
        return finish(run)


def finish_tasks(run: Run, indices: range) -> None:
    """Train one task, or several together, seal and verify them, and save them.

    Their encoded data and cached states are local, so that they are freed before the next task needs the memory.
    """
    names = [run.tasks[index].name for index in indices]
    largest = max(run.settings[name].batch_size for name in names)
    with memory_errors(" + ".join(names), largest):
        jobs, done = learn_tasks(run, indices)
        sealed = [seal_task(run, job) for job in jobs]
        verify_tasks(run, sealed)  # before they count as finished: what fails here can be repeated
        keep_tasks(run, jobs, done, sealed)


def turns(run: Run) -> list[range]:
    """Return the indices of the tasks that are trained at a time: each alone, or all together."""
    count = len(run.tasks)
    return [range(count)] if run.method.joint else [range(index, index + 1) for index in range(count)]


def begin(run: Run) -> None:
    """Announce the run: in the event log once per run, to the listener also on resume."""
    tasks = [task.name for task in run.tasks]
    steps = {}
    for task in run.tasks:
        settings = run.settings[task.name]
        steps[task.name] = settings.epochs * steps_per_epoch(len(task.train), settings)
    if run.log.written().bytes > 0:
        done = {name: steps[name] for name in tasks[: len(run.state.sealed)]}
        cells = sum(len(row) for row in run.state.rows)
        run.log.tell(
            "resumed", tasks=tasks, steps=steps, done=done, learned=len(done), cells=cells, joint=run.method.joint
        )
        return
    run.log.emit(
        "run_begin",
        tasks=tasks,
        kinds={task.name: task.kind.kind for task in run.tasks},
        method=run.config.method,
        joint=run.method.joint,
        backbone=run.backbone.origin,
        parameters=run.backbone.parameters,
        precision=run.runtime.precision,
        device=str(run.runtime.device),
        steps=steps,
    )
    run.save_state()


def learn_tasks(run: Run, indices: range) -> tuple[list[Job], TaskProgress]:
    """Train one task, or several together, from the start or from a checkpoint, and restore the best state."""
    jobs = begin_tasks(run, indices)
    place, run.place = run.place, None
    if place is None:
        if run.config.zero_shot and indices[0] > 0:
            evaluate_before(run, indices[0], run.tasks[indices[0]])
        for job in jobs:
            tell_begin(run, job)
    else:
        for job in jobs:
            job.last_good = _words(run, place.progress)
    together = Together(jobs) if len(jobs) > 1 else None

    def save(progress: TaskProgress, optimizer: torch.optim.Optimizer) -> None:
        per_epoch = jobs[0].steps_per_epoch()
        made = together.done(progress) if together else progress.epoch * per_epoch + progress.step
        if made % run.config.checkpoint_steps == 0:
            state = run.handle.learning_state()
            written = run.log.written()
            names = " + ".join(job.name for job in jobs)
            run.folder.save_checkpoint(run.state, progress, written, task=names, learning=state, optimizer=optimizer)
            for job in jobs:
                job.last_good = _words(run, progress)

    return jobs, learn_together(together, save, place) if together else learn(jobs[0], save, place)


def tell_begin(run: Run, job: Job) -> None:
    """Log that a task begins, the size of what is trained, and warnings about its settings."""
    task, trained = run.tasks[job.index], run.handle.trainable_parameters()
    head = sum(p.numel() for p in run.handle.head_parameters(job.name))
    run.log.emit(
        "task_begin",
        task=task.name,
        index=job.index,
        kind=task.kind.kind,
        train=len(task.train),
        validation=len(task.validation),
        test=len(task.test),
        epochs=job.settings.epochs,
        steps=job.steps(),
        trained={"adapters": sum(p.numel() for p in trained["scores"]), "head": head},
    )
    warn(run, task.name, before_training(job.settings, task.kind.kind, **_lengths(run, job)))


def warn(run: Run, task: str, texts: Iterable[str]) -> None:
    """Log warnings about a task's settings, for the listener and for the report."""
    for text in texts:
        run.log.emit("warning", task=task, text=text)


def _lengths(run: Run, job: Job) -> dict[str, Any]:
    """Return what `before_training` needs to know about the data."""
    sources, targets = job.train.lengths(), []
    if job.kind.kind == "generation":
        targets = [[label for label in row["labels"] if label != IGNORED] for row in job.train.encoded]
        if not run.handle.model.config.is_encoder_decoder:  # a row of a causal model is the prompt and the answer
            sources = [length - len(target) for length, target in zip(sources, targets, strict=True)]
    longest = getattr(run.handle.model.config, "max_position_embeddings", None)
    return {
        "validation": len(job.validation), "sources": sources, "targets": targets, "longest": longest,
    }  # fmt: skip


def _words(run: Run, progress: TaskProgress) -> str:
    """Describe where a resume continues."""
    return f"epoch {progress.epoch}, step {progress.step}, in {run.folder.learning}"


def seal_task(run: Run, job: Job) -> Sealed:
    """Seal the task in memory; it does not count as finished yet."""
    started = time.perf_counter()
    density, flipped = run.handle.density(), run.handle.flipped(job.first_gates)
    change = moved(run.handle, job.first_scores)
    with run.runtime.autocast():
        run.method.end_task(run.handle, job.name, importance_batches(job))
    probe = logits_hash(run.handle, job.name, run.probe(run.tasks[job.index]), run.runtime)
    task = SealedTask(job.name, run.handle.fingerprint(job.name), probe)
    return Sealed(task, density, flipped, change, time.perf_counter() - started)


def keep_tasks(run: Run, jobs: Sequence[Job], progress: TaskProgress, sealed: Sequence[Sealed]) -> None:
    """Write sealed tasks' files, what they pass on to later tasks, and then the state that makes all of it count."""
    started = time.perf_counter()
    run.state.saved = saving.stage(run.folder.path, run.handle.saved(extra=run.method.state()))
    run.state.sealed += [one.task for one in sealed]
    shared, steps = progress.seconds + time.perf_counter() - started, sum(job.steps() for job in jobs)
    for job, one in zip(jobs, sealed, strict=True):
        # tasks that were trained together share the time in proportion to their steps
        tell_end(run, job, progress, one, one.seconds + shared * job.steps() / steps)
    if run.method.never_forgets:
        run.log.emit("verified", after=jobs[-1].name, tasks=len(run.state.sealed), frozen=run.state.frozen)
    run.save_state()
    run.folder.commit(run.state)
    run.folder.drop_checkpoint()


def tell_end(run: Run, job: Job, progress: TaskProgress, sealed: Sealed, seconds: float) -> None:
    """Log what a task took, what is kept of it, and warnings about its settings."""
    run.state.seconds += seconds
    run.log.emit(
        "task_end",
        task=job.name,
        index=job.index,
        best_epoch=progress.best_epoch,
        seconds=round(seconds, 3),
        step_seconds=job.median_step_seconds(),
        peak_bytes=run.runtime.peak_bytes(),
        bytes=run.handle.bytes_per_task(job.name),
        layers=list(run.handle.layers),
        density=sealed.density,
        flipped=sealed.flipped,
        moved=sealed.moved,
        unused=progress.unused,
        importance_mean=importance_mean(run.handle),
    )
    best, by = progress.best_value or 0.0, chosen_by(job.kind, job.settings)
    flipped = of_used(sealed.flipped, progress.unused)
    warn(run, job.name, after_training(job.settings, metric=by, best=best, flipped=flipped))


def importance_batches(job: Job) -> Iterator[Batch]:
    """Yield the training data once for the method's `end_task`; only this process's part if it averages importance."""
    size = job.settings.batch_size
    processes = job.runtime.processes if job.method.averages_importance else ALONE
    rows = batches(job.train.lengths(), size, seed=job.seed, task=job.name, epoch=0)
    for one in processes.batches(rows):
        yield collate(job.train, one, job.kind, job.tokenizer, job.runtime)


def verify_tasks(run: Run, sealed: Sequence[Sealed]) -> None:
    """Check that no task sealed before or just now has changed, if the method never forgets.

    Raises:
        ForgettingError: a task has changed.
    """
    if run.method.never_forgets:
        now = [*run.state.sealed, *(one.task for one in sealed)]
        probes = {task.name: run.probe(task) for task in run.tasks[: len(now)]}
        verify(run.handle, now, run.state.frozen, probes, run.runtime)


def evaluate_tasks(run: Run, index: int) -> None:
    """Fill row `index` of the matrix: every learned task on its test split; cells already there are kept.

    Tasks that were just verified bit for bit would score what they scored: they are measured again after the last task,
    and in the rows between only if the configuration asks for that.
    """
    while index >= len(run.state.rows):
        run.state.rows.append({})  # for tasks trained together, rows above their only one stay empty
    row = run.state.rows[index]
    for column, task in enumerate(run.tasks[: index + 1]):
        if task.name in row:
            continue
        if column < index and takes_over(run, index):
            record_cell(run, index, task, run.state.rows[index - 1][task.name], 0.0, measured=False)
            continue
        started = time.perf_counter()
        result = evaluate_task(run, task)
        seconds = time.perf_counter() - started
        run.folder.write_result(run.state, run.folder.predictions(column, task.name), predictions_text(result))
        record_cell(run, index, task, result.metrics, seconds)
    if index == len(run.state.rows) - 1:
        write_matrix(run)


def write_matrix(run: Run) -> None:
    """Write matrix.json if it is not what was measured, and save the state."""
    text, path = to_json(matrix_content(run.config, run.tasks, run.state), indent=1) + "\n", run.folder.matrix
    if path.is_file() and sha256(path) == sha256(text) == run.state.files.get(path.name):
        return
    run.folder.write_result(run.state, path, text)
    run.save_state()


def takes_over(run: Run, index: int) -> bool:
    """Return whether row `index` takes over the scores of earlier tasks from the row above it."""
    return run.method.never_forgets and run.config.reevaluate == "last" and index < len(run.tasks) - 1


def evaluate_before(run: Run, index: int, task: TaskData) -> None:
    """Fill the cell right above the diagonal: the task that was just started, before its first step."""
    if task.name in run.state.rows[index - 1]:
        return
    started = time.perf_counter()
    metrics = metrics_now(run.handle, task, run.settings[task.name], run.backbone, run.runtime)
    record_cell(run, index - 1, task, metrics, time.perf_counter() - started)


def record_cell(
    run: Run, index: int, task: TaskData, metrics: dict[str, float], seconds: float, *, measured: bool = True
) -> None:
    """Put a task's metrics after task `index` into the state, log them, and save the state."""
    run.state.rows[index][task.name] = metrics
    run.state.seconds += seconds
    run.log.emit(
        "evaluated",
        task=task.name,
        after=run.tasks[index].name,
        metrics=metrics,
        main=task.kind.main_metric,
        value=metrics[task.kind.main_metric],
        measured=measured,
        seconds=round(seconds, 3),
    )
    run.save_state()


def evaluate_task(run: Run, task: TaskData) -> Evaluation:
    """Predict and score a learned task's test split with its own gates and head."""
    size = run.settings[task.name].eval_batch_size
    with run.handle.using(task.name), memory_errors(task.name, size):
        return evaluate(
            run.handle.model,
            task.kind,
            run.test(task),
            run.backbone.tokenizer,
            batch_size=size,
            runtime=run.runtime,
        )


def predictions_text(result: Evaluation) -> str:
    """Return one JSON line per test example, in the data's order: prediction and reference."""
    pairs = zip(result.predictions, result.references, strict=True)
    return "".join(to_json({"prediction": p, "reference": r}) + "\n" for p, r in pairs)


def finish(run: Run) -> RunResult:
    """Log the end of the run, once, and return the results."""
    content = matrix_content(run.config, run.tasks, run.state)
    if not run.state.finished:
        names, seconds = [task.name for task in run.tasks], round(run.state.seconds, 3)
        switch = time_to_switch(run.handle, names, run.runtime.device) if len(names) > 1 else None
        run.log.emit("run_end", seconds=seconds, switch_seconds=switch, summary=content["summary"])
        run.state.finished = True
        run.save_state()
    return RunResult(
        run.folder.path,
        content["tasks"],
        content["matrix"],
        content["metrics"],
        content["summary"],
        run.state.seconds,
    )
