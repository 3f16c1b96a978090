"""Jobs of a run: tasks that begin, with all that their first steps need."""

from __future__ import annotations

from collections.abc import Sequence

from tss.run.backbone import set_checkpointing
from tss.run.examples import MOST_PREFIX_BYTES, cache_prefix, encode_split
from tss.run.layers import scores
from tss.run.loop import Job
from tss.run.prepare import Run


def begin_tasks(run: Run, indices: Sequence[int]) -> list[Job]:
    """Begin one task, or several that are trained together, and prepare all that their steps need."""
    jobs = [make_job(run, index) for index in indices]
    run.runtime.reset_peak()
    run.method.begin_tasks(run.handle, {job.name: job.kind for job in jobs})
    set_checkpointing(run.handle, any(job.settings.gradient_checkpointing for job in jobs))
    for job in jobs:
        job.first_gates, job.first_scores = run.handle.packed(), scores(run.handle)
        kept = (job.kind, job.tokenizer, run.runtime, run.handle, job.settings.eval_batch_size)
        most = MOST_PREFIX_BYTES // len(jobs)
        job.train = cache_prefix(job.train, *kept, most)
        job.validation = cache_prefix(job.validation, *kept, most)
    return jobs


def make_job(run: Run, index: int) -> Job:
    """Create the job of a task, with its data encoded."""
    task = run.tasks[index]
    settings, tokenizer = run.settings[task.name], run.backbone.tokenizer
    return Job(
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
