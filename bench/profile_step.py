"""Where one training step goes, by operations, and what it costs without adapters: python bench/profile_run.py step"""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

TASKS = ("asc/cameras", "ner/news", "drg/hotels")  # one of each kind
OPTIMIZER, ADAPTERS, HEAD = "optimizer", "adapters", "head and loss"
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "mkldnn::_linear_pointwise")
OURS, REMOVED, KEPT = "tss", "adapters removed", "tss, begun at the first adapter"


def category(event: Any) -> str:
    """What an operation in the profile belongs to, by the operations and labels that it runs in."""
    names, parent = [event.name], event.cpu_parent
    while parent is not None:
        names.append(parent.name)
        parent = parent.cpu_parent
    if any(name.startswith("Optimizer.") for name in names):
        return OPTIMIZER
    if any(name == ADAPTERS or "GatedAdapter" in name or name.startswith("tss_kernels::") for name in names):
        return ADAPTERS
    if HEAD in names:
        return HEAD
    way = "backward" if any(name.startswith("autograd::engine") for name in names) else "forward"
    return f"backbone {way}, {'products' if event.name in PRODUCTS else 'the rest'}"


@contextmanager
def labelled() -> Iterator[None]:
    """Adapters and heads appear in a profile under their names."""
    import torch

    points = [("tss.adapters.bank", "Bank", "forward", ADAPTERS), ("tss.tasks.heads", "Head", "forward", HEAD)]
    points += [("tss.tasks.base", "", "mean_loss", HEAD), ("tss.tasks.vocabulary", "", "linear_cross_entropy", HEAD)]
    kept = []
    for module, holder, name, label in points:
        owner: Any = importlib.import_module(module)
        owner = getattr(owner, holder) if holder else owner
        original = getattr(owner, name)
        kept.append((owner, name, original))

        @functools.wraps(original)
        def run(*args: Any, _original: Any = original, _label: str = label, **kwargs: Any) -> Any:
            with torch.profiler.record_function(_label):
                return _original(*args, **kwargs)

        setattr(owner, name, run)
    try:
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)


@contextmanager
def adapters_removed() -> Iterator[None]:
    """Every adapter hands its input on; the backward pass still comes down to the first one."""
    from tss.adapters.bank import Bank

    def hand_on(self: Any, hidden: Any) -> Any:
        return hidden if hidden.requires_grad else hidden.detach().requires_grad_()

    original: Any = Bank.forward
    Bank.forward = hand_on  # type: ignore[method-assign]
    try:
        yield
    finally:
        Bank.forward = original  # type: ignore[method-assign]


def profile_step(precision: str, overrides: list[str], repeats: int, folder: Path) -> None:
    """Print for each kind of task what its steps take, with and without adapters, and where the time goes."""
    from tss.run.config import load_config
    from tss.run.prepare import open_run
    from tss.run.state import Layout

    config = load_config("demo", [f"precision={precision}", "log_seconds=1000", *overrides])
    with open_run(config, Layout(folder), resume=False, listener=None) as run, labelled():
        for task in run.tasks:
            if task.name in TASKS:
                profile_task(run, task, repeats)
                run.handle.seal_task()


def profile_task(run: Any, task: Any, repeats: int) -> None:
    """One kind of task: median time of steps over an epoch's batches, variants interleaved, then a profile of ours."""
    import torch

    from tss.run.examples import encode_split, keep_below
    from tss.run.loop import Job

    settings, tokenizer = run.settings(task.name), run.backbone.tokenizer
    whole = encode_split(task.train, task.kind, tokenizer, settings)
    kept = keep_below(whole, task.kind, tokenizer, run.runtime, run.handle, settings.eval_batch_size)
    names = (task.name, 0, task.kind, settings, whole, whole, run.handle, run.method, tokenizer, run.runtime)
    job = Job(*names, run.config.seed, run.log)
    run.method.begin_task(run.handle, task.name, task.kind)
    optimizer = run.method.make_optimizer(run.handle, settings)
    heads = run.handle.trainable_parameters()["head"]
    bare = torch.optim.AdamW(heads, fused=True) if heads else None
    run.handle.model.train()
    groups = job.groups(0)
    times: dict[str, list[float]] = {name: [] for name in (OURS, REMOVED, KEPT)}
    for turn in range(-1, repeats):  # one round to warm up
        for name, taken in times.items():
            job.train = kept if name == KEPT else whole
            with adapters_removed() if name == REMOVED else nullcontext():
                started = time.process_time()
                step(job, bare if name == REMOVED else optimizer, groups[turn % len(groups)])
                taken.append((time.process_time() - started) * 1e3)
    times = {name: taken[1:] for name, taken in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times[OURS], times[REMOVED], strict=True))
    print(
        f"\n{task.name} ({task.kind.kind}), processor ms of a step, median of {repeats} batches, interleaved: ", end=""
    )
    print(", ".join(f"{name} {statistics.median(taken):.1f}" for name, taken in times.items()), end="; ")
    print(f"{OURS} / {REMOVED} {ratio:.3f}\n\n| part of a step, as a run makes it | share |\n|---|---:|")
    job.train = kept
    spent = parts(lambda: [step(job, optimizer, group) for group in groups])
    for name, microseconds in spent.most_common():
        print(f"| {name} | {microseconds / sum(spent.values()):.1%} |")


def step(job: Any, optimizer: Any, group: list[list[int]]) -> None:
    """One optimizer step on one batch."""
    from tss.run import loop

    loop.backward(job, group, 0, 0)
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def parts(call: Callable[[], object]) -> Counter[str]:
    """Microseconds of a call by category."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    spent: Counter[str] = Counter()
    for event in profiler.events() or []:
        spent[category(event)] += event.self_cpu_time_total  # type: ignore[attr-defined]
    return spent
