"""Everything before the first step: data, backbone, adapters, and, on resume, what was already finished."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tss.adapters import attach, saving
from tss.data import TaskData, list_tasks, load_task, resolve_order
from tss.errors import ConfigError, StateError
from tss.io import PARTIAL, to_json, write_text
from tss.methods import METHODS, Method
from tss.run.backbone import Backbone, check_lengths, load_backbone, resolve_device, resolve_precision
from tss.run.checkpoint import Saved, read_checkpoint
from tss.run.config import RunConfig, TaskSettings, dump_config, settings_for
from tss.run.events import EventLog, Listener
from tss.run.examples import Split, collate, encode_split, with_settings
from tss.run.invariants import logits_hash
from tss.run.runtime import Runtime
from tss.run.state import Layout, RunState, SealedTask, check_same_config, check_same_data, load_state
from tss.run.zero_shot import untrained_metrics

if TYPE_CHECKING:
    from tss.adapters import TssHandle
    from tss.methods.base import Batch


@dataclass
class Run:
    """A run under way."""

    config: RunConfig
    layout: Layout
    tasks: list[TaskData]
    runtime: Runtime
    backbone: Backbone
    handle: TssHandle
    method: Method
    state: RunState
    log: EventLog
    saved: Saved | None = None
    """Where to go on inside the first unfinished task."""
    tests: dict[str, Split] = field(default_factory=dict)

    def settings(self, task: str) -> TaskSettings:
        return settings_for(self.config, task)

    def test(self, task: TaskData) -> Split:
        """A task's test split, encoded once."""
        if task.name not in self.tests:
            self.tests[task.name] = encode_split(
                task.test, task.kind, self.backbone.tokenizer, self.settings(task.name)
            )
        return self.tests[task.name]

    def probe(self, task: TaskData) -> Batch:
        """The inputs whose logits must never change: the first of the test split."""
        split = self.test(task)
        rows = range(min(self.config.probe_size, len(split)))
        return collate(split, rows, task.kind, self.backbone.tokenizer, self.runtime)

    def save_state(self) -> None:
        """Make what is finished so far count."""
        self.state.events_bytes = self.log.position()
        self.state.save(self.layout.state)


@contextlib.contextmanager
def open_run(config: RunConfig, layout: Layout, *, resume: bool, listener: Listener | None) -> Iterator[Run]:
    """Begin a run in an empty folder, or take up the one that is there.

    Raises:
        ConfigError, DataError, StateError: before anything is trained or written.
    """
    check_folder(layout, resume)
    device = resolve_device(config.device)
    runtime = Runtime(device, resolve_precision(config.precision, device))
    names = resolve_tasks(config)
    config = config.model_copy(update={"precision": runtime.precision, "tasks": names, "shuffle": False})
    tasks = load_tasks(config)
    with contextlib.ExitStack() as stack:
        state, saved = None, None
        if layout.state.is_file():
            stack.enter_context(lock(layout))
            state = load_state(layout.state)
            check_same_config(state.config, config.resolved())
            check_same_data(state.digests, {task.name: task.digest for task in tasks})
            remove_leftovers(layout)
        backbone = checked_backbone(config, tasks, runtime)
        method = make_method(config)
        untrained = {}
        if state is None and config.zero_shot:
            untrained = untrained_metrics(config, tasks, backbone, method, runtime)
        tasks = [dataclasses.replace(task, kind=task.kind.for_model(backbone.model)) for task in tasks]
        handle = attach(backbone.model, config.adapters, method.layer_options()).tss
        if state is None:
            stack.enter_context(lock(layout))
            state = new_state(config, tasks, runtime, handle, layout)
            state.untrained = untrained
        else:
            restore(state, layout, handle, method)
            if state.saved is not None:
                saving.commit(layout.folder, state.saved)  # a crash may have come between the state and this
            saved = take_checkpoint(layout, state)
        length = saved.events_bytes if saved else state.events_bytes
        log = EventLog(layout.events, length=length, step_seconds=config.log_seconds, listener=listener)
        stack.callback(log.close)
        run = Run(config, layout, tasks, runtime, backbone, handle, method, state, log, saved)
        if state.environment != runtime.signature():
            renew_probes(run)
        yield run


def checked_backbone(config: RunConfig, tasks: list[TaskData], runtime: Runtime) -> Backbone:
    """Load the backbone, and see that every task's kind and lengths fit it."""
    backbone = load_backbone(
        config.backbone,
        tokenizer=config.tokenizer,
        precision=runtime.precision,
        device=runtime.device,
        seed=config.seed,
    )
    for task in tasks:
        settings = settings_for(config, task.name)
        target = settings.target_length if task.kind.kind == "generation" else 0
        try:
            task.kind.check_model(backbone.model)
            check_lengths(backbone.model, task.name, source_length=settings.source_length, target_length=target)
        except ValueError as error:
            raise ConfigError(f"task {task.name} on backbone {config.backbone}: {error}") from error
    return backbone


def remove_leftovers(layout: Layout) -> None:
    """Remove what a killed process left half-written."""
    for path in layout.folder.rglob(f"*{PARTIAL}"):
        path.unlink()


def check_folder(layout: Layout, resume: bool) -> None:
    """A new run needs a folder without one; a resume needs a folder.

    Raises:
        StateError: with the remedy.
    """
    holds_run = any(path.exists() for path in (layout.state, layout.matrix, layout.events))
    if holds_run and not resume:
        raise StateError(f"{layout.folder} already holds a run: continue it with --resume, or choose another folder")
    if resume and not layout.folder.is_dir():
        raise StateError(f"{layout.folder}: no such folder, nothing to resume; run without --resume to begin")
    if holds_run and not layout.state.is_file():
        raise StateError(
            f"{layout.state} is missing, so the run in {layout.folder} cannot go on; start in another folder"
        )


@contextlib.contextmanager
def lock(layout: Layout) -> Iterator[None]:
    """Keep a second process out of the folder; the lock goes with the process, however that ends."""
    layout.state.parent.mkdir(parents=True, exist_ok=True)
    with (layout.state.parent / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(f"{layout.folder}: another process is writing this run; wait for it or stop it") from error
        yield


def resolve_tasks(config: RunConfig) -> list[str]:
    """The sequence as names in the data, shuffled if the configuration says so."""
    hub = config.data.startswith("hub:")
    if hub and not config.tasks:
        raise ConfigError(
            f"tasks: a hub dataset ({config.data}) has no list of tasks; name one, for example tasks=[asc/x]"
        )
    available = config.tasks if hub else list_tasks(config.data)
    order = resolve_order(config.tasks or available, available, config.seed if config.shuffle else None)
    if order.missing and config.missing_tasks == "error":
        raise ConfigError(
            f"tasks: {', '.join(order.missing)} not in {config.data}, which has: {', '.join(available)}; "
            "correct the names, or skip what is missing with missing_tasks=skip"
        )
    if not order.tasks:
        raise ConfigError(f"tasks: none of the sequence is in {config.data}, which has: {', '.join(available)}")
    return order.tasks


def load_tasks(config: RunConfig) -> list[TaskData]:
    """Read and check all data before anything is trained; kinds take the run's metric and decoding."""
    tasks = []
    for name in config.tasks:
        settings = settings_for(config, name)
        limits = settings.limits.model_dump()
        task = load_task(config.data, name, seed=config.seed, limits=limits, fields=config.fields)
        tasks.append(dataclasses.replace(task, kind=with_settings(task.kind, settings, name)))
    return tasks


def make_method(config: RunConfig) -> Method:
    """The method with its options."""
    method = METHODS[config.method]
    return method(method.options_type(**config.method_options))


def new_state(
    config: RunConfig, tasks: list[TaskData], runtime: Runtime, handle: TssHandle, layout: Layout
) -> RunState:
    """The state of a run that has done nothing, with its first files."""
    write_text(layout.config, dump_config(config))
    write_text(layout.environment, to_json(runtime.environment(), indent=1) + "\n")
    digests = {task.name: task.digest for task in tasks}
    state = RunState(config.resolved(), digests, runtime.signature(), handle.frozen_fingerprint())
    state.save(layout.state)
    return state


def restore(state: RunState, layout: Layout, handle: TssHandle, method: Method) -> None:
    """Give the handle and the method what is finished.

    Raises:
        StateError: if a file is missing or changed, or the backbone is another one.
    """
    if handle.frozen_fingerprint() != state.frozen:
        raise StateError(
            f"{layout.folder}: the backbone's or the adapters' frozen weights are not those the run began with; "
            "put the same backbone back, or start in another folder"
        )
    if state.saved is None:
        return
    try:
        saved = saving.read(layout.folder, state.saved)
    except StateError as error:
        raise StateError(
            f"{error}. Put the file back from a copy, or start in another folder; the other tasks are in tasks/"
        ) from error
    handle.restore(saved, str(layout.folder))
    method.load_state(saved.extra)
    for sealed in state.sealed:
        if handle.fingerprint(sealed.name) != sealed.fingerprint:
            raise StateError(
                f"{layout.folder}: gates and head of {sealed.name} are not those that were sealed; its file belongs to "
                "another run"
            )


def take_checkpoint(layout: Layout, state: RunState) -> Saved | None:
    """The place inside the first unfinished task; one left behind by a finished task is removed."""
    if not layout.learning.is_file():
        return None
    saved = read_checkpoint(layout.learning)
    if saved.index == len(state.sealed):
        return saved
    layout.learning.unlink()
    return None


def renew_probes(run: Run) -> None:
    """Another device, precision or library version computes other last bits: hash the probes anew, and say so."""
    before, now = run.state.environment, run.runtime.signature()
    by_name = {task.name: task for task in run.tasks}
    run.state.sealed = [
        SealedTask(
            sealed.name,
            sealed.fingerprint,
            logits_hash(run.handle, sealed.name, run.probe(by_name[sealed.name]), run.runtime),
        )
        for sealed in run.state.sealed
    ]
    run.state.environment = now
    changed = sorted(key for key in now if now[key] != before.get(key))
    run.log.emit("environment", changed=changed, before=before, now=now)
