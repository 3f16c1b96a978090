"""The sequence: learn a task, seal it, verify that none was forgotten, keep it, evaluate all; then the next."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tss.adapters import saving
from tss.data import TaskData
from tss.io import sha256, to_json
from tss.methods.base import Batch
from tss.run.advice import after_training, before_training
from tss.run.checkpoint import TaskProgress
from tss.run.config import RunConfig
from tss.run.evaluate import Evaluation, evaluate
from tss.run.events import Listener
from tss.run.examples import cache_prefix, encode_split, epoch_batches
from tss.run.folder import RunFolder
from tss.run.invariants import logits_hash, verify
from tss.run.loop import Job, chosen_by, learn, of_used, steps_per_epoch
from tss.run.prepare import Run, open_run
from tss.run.results import RunResult, matrix_content
from tss.run.run_state import SealedTask
from tss.run.runtime import disk_errors, memory_errors
from tss.run.zero_shot import metrics_now


@dataclass(frozen=True)
class Sealed:
    """A task that is sealed in memory, and what is told of it: gates on and flipped by layer, and the time it took."""

    task: SealedTask
    density: dict[str, float]
    flipped: dict[str, float]
    seconds: float


def run_sequence(
    config: RunConfig, folder: Path | str, *, resume: bool = False, progress: Listener | None = None
) -> RunResult:
    """Learn a sequence of tasks and fill a run folder.

    Args:
        config: the run.
        folder: where it goes; it may not hold a run, unless `resume`.
        resume: go on with the run in the folder, bit for bit as if it had never stopped.
        progress: called with every event, for example `tss.run.progress.Console()`.

    Raises:
        ConfigError, DataError: before anything is trained.
        StateError: the folder cannot be used, a saved file is damaged, or the disk is full.
        ForgettingError: a sealed task changed.
        TssError: a loss that is not finite, or no memory. Whatever was finished is kept.
    """
    files = RunFolder(folder)
    with disk_errors(files.path), open_run(config, files, resume=resume, listener=progress) as run:
        begin(run)
        for index, task in enumerate(run.tasks):
            if index == len(run.state.sealed):
                with memory_errors(task.name, run.settings[task.name].batch_size):
                    job, done = learn_task(run, index, task)
                    sealed = seal_task(run, job)
                    verify_tasks(run, index, sealed)  # before anything of it counts: what fails here can be done again
                    keep_task(run, job, done, sealed)
            evaluate_tasks(run, index)
        return finish(run)


def begin(run: Run) -> None:
    """Tell what is about to be done: in the diary once per run, to the listener also on resume."""
    tasks = [task.name for task in run.tasks]
    steps = {}
    for task in run.tasks:
        settings = run.settings[task.name]
        steps[task.name] = settings.epochs * steps_per_epoch(len(task.train), settings)
    if run.log.written().bytes > 0:
        done = {name: steps[name] for name in tasks[: len(run.state.sealed)]}
        cells = sum(len(row) for row in run.state.rows)
        run.log.tell("resumed", tasks=tasks, steps=steps, done=done, learned=len(done), cells=cells)
        return
    run.log.emit(
        "run_begin",
        tasks=tasks,
        kinds={task.name: task.kind.kind for task in run.tasks},
        method=run.config.method,
        backbone=run.backbone.origin,
        parameters=run.backbone.parameters,
        precision=run.runtime.precision,
        device=str(run.runtime.device),
        steps=steps,
    )
    run.save_state()


def learn_task(run: Run, index: int, task: TaskData) -> tuple[Job, TaskProgress]:
    """Train one task from its start, or from where it was saved, up to its best state restored."""
    settings, tokenizer = run.settings[task.name], run.backbone.tokenizer
    job = Job(
        name=task.name,
        index=index,
        kind=task.kind,
        settings=settings,
        train=encode_split(task.train, task.kind, tokenizer, settings),
        validation=encode_split(task.validation, task.kind, tokenizer, settings),
        handle=run.handle,
        method=run.method,
        tokenizer=tokenizer,
        runtime=run.runtime,
        seed=run.config.seed,
        log=run.log,
    )
    run.runtime.reset_peak()
    run.method.begin_task(run.handle, task.name, task.kind)
    job.first_gates = run.handle.packed()
    size = settings.eval_batch_size
    job.train = cache_prefix(job.train, task.kind, tokenizer, run.runtime, run.handle, size)
    job.validation = cache_prefix(job.validation, task.kind, tokenizer, run.runtime, run.handle, size)
    place, run.place = run.place, None
    if place is None:
        if run.config.zero_shot and index > 0:
            evaluate_before(run, index, task)
        run.log.emit(
            "task_begin",
            task=task.name,
            index=index,
            kind=task.kind.kind,
            train=len(task.train),
            validation=len(task.validation),
            test=len(task.test),
            epochs=settings.epochs,
            steps=settings.epochs * job.steps_per_epoch(),
        )
        warn(run, task.name, before_training(settings, task.kind.kind, **_lengths(run, job)))
    else:
        job.last_good = _words(run, place.progress)

    def save(progress: TaskProgress, optimizer: torch.optim.Optimizer) -> None:
        if (progress.epoch * job.steps_per_epoch() + progress.step) % run.config.checkpoint_steps == 0:
            state = run.handle.learning_state()
            written = run.log.written()
            run.folder.save_checkpoint(
                run.state, progress, written, task=task.name, learning=state, optimizer=optimizer
            )
            job.last_good = _words(run, progress)

    return job, learn(job, save, place)


def warn(run: Run, task: str, texts: Iterable[str]) -> None:
    """Tell what speaks against a task's settings, and write it down for the report."""
    for text in texts:
        run.log.emit("warning", task=task, text=text)


def _lengths(run: Run, job: Job) -> dict[str, Any]:
    """What `before_training` wants to know of the data."""
    targets = [len(row["labels"]) for row in job.train.encoded] if job.kind.kind == "generation" else []
    longest = getattr(run.handle.model.config, "max_position_embeddings", None)
    return {
        "validation": len(job.validation), "sources": job.train.lengths(), "targets": targets, "longest": longest,
    }  # fmt: skip


def _words(run: Run, progress: TaskProgress) -> str:
    """Where a resume goes on."""
    return f"epoch {progress.epoch}, step {progress.step}, in {run.folder.learning}"


def seal_task(run: Run, job: Job) -> Sealed:
    """Seal the task in memory; nothing of it counts yet."""
    started = time.perf_counter()
    density, flipped = run.handle.density(), run.handle.flipped(job.first_gates)
    with run.runtime.autocast():
        run.method.end_task(run.handle, job.name, importance_batches(job))
    probe = logits_hash(run.handle, job.name, run.probe(run.tasks[job.index]), run.runtime)
    task = SealedTask(job.name, run.handle.fingerprint(job.name), probe)
    return Sealed(task, density, flipped, time.perf_counter() - started)


def keep_task(run: Run, job: Job, progress: TaskProgress, sealed: Sealed) -> None:
    """Write a sealed task's file, what it hands on, and then the state that makes both count."""
    started = time.perf_counter()
    run.state.saved = saving.stage(run.folder.path, run.handle.saved(extra=run.method.state()))
    run.state.sealed.append(sealed.task)
    seconds = progress.seconds + sealed.seconds + time.perf_counter() - started
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
        unused=progress.unused,
        importance_mean=importance_mean(run),
    )
    best, by = progress.best_value or 0.0, chosen_by(job.kind, job.settings)
    flipped = of_used(sealed.flipped, progress.unused)
    warn(run, job.name, after_training(job.settings, metric=by, best=best, flipped=flipped))
    if run.method.never_forgets:
        run.log.emit("verified", after=job.name, tasks=len(run.state.sealed), frozen=run.state.frozen)
    run.save_state()
    run.folder.commit(run.state)
    run.folder.drop_checkpoint()


def importance_batches(job: Job) -> Iterator[Batch]:
    """One pass over the training data for the method's end of the task."""
    size = job.settings.batch_size
    return epoch_batches(job.train, job.kind, job.tokenizer, job.runtime, batch_size=size, seed=job.seed, task=job.name)


def importance_mean(run: Run) -> dict[str, float]:
    """Mean accumulated importance of each gated layer that has any."""
    importances = {name: getattr(layer, "importance", None) for name, layer in run.handle.layers.items()}
    return {name: value.mean().item() for name, value in importances.items() if value is not None}


def verify_tasks(run: Run, index: int, sealed: Sealed) -> None:
    """Check after task `index` that no sealed task changed, if the method promises it.

    Raises:
        ForgettingError: if one did.
    """
    if run.method.never_forgets:
        probes = {task.name: run.probe(task) for task in run.tasks[: index + 1]}
        verify(run.handle, [*run.state.sealed, sealed.task], run.state.frozen, probes, run.runtime)


def evaluate_tasks(run: Run, index: int) -> None:
    """Fill row `index` of the matrix: every learned task on its test split; cells already there are kept.

    What was just verified bit for bit would score what it scored: it is measured again after the last task, and in the
    rows between only if the configuration asks for that.
    """
    if index == len(run.state.rows):
        run.state.rows.append({})
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
    """Write matrix.json where it is not what was measured, and make it count."""
    text, path = to_json(matrix_content(run.config, run.tasks, run.state), indent=1) + "\n", run.folder.matrix
    if path.is_file() and sha256(path) == sha256(text) == run.state.files.get(path.name):
        return
    run.folder.write_result(run.state, path, text)
    run.save_state()


def takes_over(run: Run, index: int) -> bool:
    """Whether row `index` takes the scores of earlier tasks over from the row above it."""
    return run.method.never_forgets and run.config.reevaluate == "last" and index < len(run.tasks) - 1


def evaluate_before(run: Run, index: int, task: TaskData) -> None:
    """Fill the cell right above the diagonal: the task that was just begun, before its first step."""
    if task.name in run.state.rows[index - 1]:
        return
    started = time.perf_counter()
    metrics = metrics_now(run.handle, task, run.settings[task.name], run.backbone, run.runtime)
    record_cell(run, index - 1, task, metrics, time.perf_counter() - started)


def record_cell(
    run: Run, index: int, task: TaskData, metrics: dict[str, float], seconds: float, *, measured: bool = True
) -> None:
    """Put a task's metrics after task `index` into the state, and tell."""
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
    """One JSON line per test example, in the data's order: prediction and reference."""
    pairs = zip(result.predictions, result.references, strict=True)
    return "".join(to_json({"prediction": p, "reference": r}) + "\n" for p, r in pairs)


def finish(run: Run) -> RunResult:
    """Tell the end, once, and give the results."""
    content = matrix_content(run.config, run.tasks, run.state)
    if not run.state.finished:
        run.log.emit("run_end", seconds=round(run.state.seconds, 3), summary=content["summary"])
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
