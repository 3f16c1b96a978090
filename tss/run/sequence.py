"""The sequence: learn a task, seal it, verify that none was forgotten, evaluate all that are learned; then the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tss.adapters import saving
from tss.data import TaskData
from tss.io import to_json, write_text
from tss.methods.base import Batch
from tss.run.checkpoint import Position, save_checkpoint
from tss.run.config import RunConfig
from tss.run.evaluate import Evaluation, evaluate
from tss.run.events import Listener
from tss.run.examples import encode_split, epoch_batches, keep_below
from tss.run.invariants import logits_hash, verify
from tss.run.loop import Job, learn, steps_per_epoch
from tss.run.prepare import Run, open_run
from tss.run.results import RunResult, matrix_content
from tss.run.runtime import disk_errors, memory_errors
from tss.run.state import Layout, SealedTask
from tss.run.zero_shot import metrics_now


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
    layout = Layout(Path(folder))
    with disk_errors(layout.folder), open_run(config, layout, resume=resume, listener=progress) as run:
        begin(run)
        for index, task in enumerate(run.tasks):
            if index == len(run.state.sealed):
                with memory_errors(task.name, run.settings(task.name).batch_size):
                    job, position = learn_task(run, index, task)
                    seal_task(run, job, position)
            if index == run.state.verified:
                verify_tasks(run, index)
            evaluate_tasks(run, index)
        return finish(run)


def begin(run: Run) -> None:
    """Tell what is about to be done: in the diary once per run, to the listener also on resume."""
    tasks = [task.name for task in run.tasks]
    steps = {}
    for task in run.tasks:
        settings = run.settings(task.name)
        steps[task.name] = settings.epochs * steps_per_epoch(len(task.train), settings)
    if run.log.position() > 0:
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
        steps=steps,
    )
    run.save_state()


def learn_task(run: Run, index: int, task: TaskData) -> tuple[Job, Position]:
    """Train one task from its start, or from where it was saved, up to its best state restored."""
    settings, tokenizer = run.settings(task.name), run.backbone.tokenizer
    job = Job(
        task.name,
        index,
        task.kind,
        settings,
        encode_split(task.train, task.kind, tokenizer, settings),
        encode_split(task.validation, task.kind, tokenizer, settings),
        run.handle,
        run.method,
        tokenizer,
        run.runtime,
        run.config.seed,
        run.log,
    )
    run.runtime.reset_peak()
    run.method.begin_task(run.handle, task.name, task.kind)
    job.first_gates = run.handle.packed()
    size = settings.eval_batch_size
    job.train = keep_below(job.train, task.kind, tokenizer, run.runtime, run.handle, size)
    job.validation = keep_below(job.validation, task.kind, tokenizer, run.runtime, run.handle, size)
    saved, run.saved = run.saved, None
    if saved is None:
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
            steps=settings.epochs * job.steps_per_epoch(),
        )

    def checkpoint(position: Position, optimizer: torch.optim.Optimizer) -> None:
        if (position.epoch * job.steps_per_epoch() + position.step) % run.config.checkpoint_steps == 0:
            save_checkpoint(
                run.layout.learning,
                task=task.name,
                index=index,
                events_bytes=run.log.position(),
                position=position,
                learning=run.handle.learning_state(),
                optimizer=optimizer,
            )

    return job, learn(job, checkpoint, saved)


def seal_task(run: Run, job: Job, position: Position) -> None:
    """Seal the task and write its file, what it hands on, and then the state that makes both count."""
    started = time.perf_counter()
    density, flipped = run.handle.density(), run.handle.flipped(job.first_gates)
    with run.runtime.autocast():
        run.method.end_task(run.handle, job.name, importance_batches(job))
    run.state.saved = saving.stage(run.layout.folder, run.handle.saved(extra=run.method.state()))
    probe = logits_hash(run.handle, job.name, run.probe(run.tasks[job.index]), run.runtime)
    run.state.sealed.append(SealedTask(job.name, run.handle.fingerprint(job.name), probe))
    seconds = position.seconds + time.perf_counter() - started
    run.state.seconds += seconds
    run.log.emit(
        "task_end",
        task=job.name,
        index=job.index,
        best_epoch=position.best_epoch,
        seconds=round(seconds, 3),
        step_seconds=job.median_step_seconds(),
        peak_bytes=run.runtime.peak_bytes(),
        bytes=run.handle.bytes_per_task(job.name),
        density=density,
        flipped=flipped,
        importance_mean=importance_mean(run),
    )
    run.save_state()
    saving.commit(run.layout.folder, run.state.saved)
    run.layout.learning.unlink(missing_ok=True)


def importance_batches(job: Job) -> Iterator[Batch]:
    """One pass over the training data for the method's end of the task."""
    size = job.settings.batch_size
    return epoch_batches(job.train, job.kind, job.tokenizer, job.runtime, batch_size=size, seed=job.seed, task=job.name)


def importance_mean(run: Run) -> dict[str, float]:
    """Mean accumulated importance of each gated layer that has any."""
    importances = {name: getattr(layer, "importance", None) for name, layer in run.handle.layers.items()}
    return {name: value.mean().item() for name, value in importances.items() if value is not None}


def verify_tasks(run: Run, index: int) -> None:
    """Check after task `index` that no sealed task changed, if the method promises it.

    Raises:
        ForgettingError: if one did.
    """
    if run.method.never_forgets:
        probes = {task.name: run.probe(task) for task in run.tasks[: index + 1]}
        verify(run.handle, run.state.sealed, run.state.frozen, probes, run.runtime)
        after = run.tasks[index].name
        run.log.emit("verified", after=after, tasks=[task.name for task in run.state.sealed], frozen=run.state.frozen)
    run.state.verified = index + 1
    run.save_state()


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
        write_predictions(run.layout.predictions(column, task.name), result)
        record_cell(run, index, task, result.metrics, seconds)
    write_text(run.layout.matrix, to_json(matrix_content(run.config, run.tasks, run.state), indent=1) + "\n")


def takes_over(run: Run, index: int) -> bool:
    """Whether row `index` takes the scores of earlier tasks over from the row above it."""
    unchanged = run.method.never_forgets and run.state.verified == index + 1
    return unchanged and run.config.reevaluate == "last" and index < len(run.tasks) - 1


def evaluate_before(run: Run, index: int, task: TaskData) -> None:
    """Fill the cell right above the diagonal: the task that was just begun, before its first step."""
    if task.name in run.state.rows[index - 1]:
        return
    started = time.perf_counter()
    metrics = metrics_now(run.handle, task, run.config, run.backbone, run.runtime)
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
    size = run.settings(task.name).eval_batch_size
    with run.handle.using(task.name), memory_errors(task.name, size):
        return evaluate(
            run.handle.model,
            task.kind,
            run.test(task),
            run.backbone.tokenizer,
            batch_size=size,
            runtime=run.runtime,
        )


def write_predictions(path: Path, result: Evaluation) -> None:
    """One JSON line per test example, in the data's order: prediction and reference."""
    pairs = zip(result.predictions, result.references, strict=True)
    write_text(path, "".join(to_json({"prediction": p, "reference": r}) + "\n" for p, r in pairs))


def finish(run: Run) -> RunResult:
    """Tell the end, once, and give the results."""
    content = matrix_content(run.config, run.tasks, run.state)
    if not run.state.finished:
        run.log.emit("run_end", seconds=round(run.state.seconds, 3), summary=content["summary"])
        run.state.finished = True
        run.save_state()
    return RunResult(
        run.layout.folder,
        content["tasks"],
        content["matrix"],
        content["metrics"],
        content["summary"],
        run.state.seconds,
    )
