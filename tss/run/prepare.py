"""Everything before the first step: data, backbone, adapters, and, on resume, what was already finished."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tss.data import TaskData
from tss.errors import ConfigError, StateError
from tss.methods import METHODS, Method
from tss.run.backbone import Backbone, attach_adapters, check_checkpointing, check_lengths, identity, load_backbone
from tss.run.checkpoint import Checkpoint
from tss.run.config import RunConfig, TaskSettings, dump_config
from tss.run.events import EventLog, Listener
from tss.run.examples import Split, collate, encode_split
from tss.run.folder import RunFolder
from tss.run.invariants import logits_hash
from tss.run.processes import shard
from tss.run.resolve import load_tasks, resolve
from tss.run.run_state import RunState, check_same, check_same_config
from tss.run.runtime import Runtime
from tss.run.zero_shot import untrained_metrics

if TYPE_CHECKING:
    from tss.adapters import TssHandle
    from tss.methods.base import Batch


@dataclass
class Run:
    """Run in progress."""

    config: RunConfig
    settings: dict[str, TaskSettings]
    """Task -> its settings."""
    folder: RunFolder
    tasks: list[TaskData]
    runtime: Runtime
    backbone: Backbone
    handle: TssHandle
    method: Method
    state: RunState
    log: EventLog
    place: Checkpoint | None = None
    """Checkpoint inside the first unfinished task to resume from."""
    tests: dict[str, Split] = field(default_factory=dict)

    def test(self, task: TaskData) -> Split:
        """Return a task's test split, which is encoded only once."""
        if task.name not in self.tests:
            settings = self.settings[task.name]
            self.tests[task.name] = encode_split(task.test, task.kind, self.backbone.tokenizer, settings)
        return self.tests[task.name]

    def probe(self, task: TaskData) -> Batch:
        """Return the batch whose logits must never change: the first rows of the test split."""
        split = self.test(task)
        rows = range(min(self.config.probe_size, len(split)))
        return collate(split, rows, task.kind, self.backbone.tokenizer, self.runtime)

    def save_state(self) -> None:
        """Save the state, so that what is finished so far counts."""
        self.state.events = self.log.written()
        self.state.save(self.folder.state)


@contextlib.contextmanager
def open_run(config: RunConfig, folder: RunFolder, *, resume: bool, listener: Listener | None) -> Iterator[Run]:
    """Start a run in a folder, or resume the run that the folder already has.

    Raises:
        ConfigError, DataError, StateError: before anything is trained or written.
    """
    folder.check(resume)
    config, runtime = resolve(config)
    tasks, settings = load_tasks(config)
    with contextlib.ExitStack() as stack:
        state, changed = None, []
        if folder.state.is_file():
            stack.enter_context(folder.lock())
            state = folder.load_state()
            learned = [task.name for task in state.sealed]
            changed = check_same_config(state.config, config.resolved(), learned)
            check_same("cannot resume: the data of {}", state.digests, {task.name: task.digest for task in tasks})
            folder.remove_leftovers()
        backbone = checked_backbone(config, settings, tasks, runtime)
        if state is not None:
            check_same("cannot resume: the {}", state.backbone, identity(backbone))
        method = make_method(config)
        untrained = {}
        if state is None and config.zero_shot:
            untrained = untrained_metrics(config, settings, tasks, backbone, method, runtime)
        tasks = [dataclasses.replace(task, kind=task.kind.for_model(backbone.model)) for task in tasks]
        handle = attach_adapters(config, backbone, method)
        place = None
        if state is None:
            stack.enter_context(folder.lock())
            if folder.state.is_file():
                raise StateError(f"{folder}: another process has since started a run here; choose another folder")
            folder.remove_leftovers()
            state = RunState(
                uuid.uuid4().hex, config.resolved(), {task.name: task.digest for task in tasks}, runtime.signature(),
                handle.frozen_fingerprint(), identity(backbone), untrained=untrained,
            )  # fmt: skip
            folder.begin(state, dump_config(config), runtime.environment())
        else:
            restore(state, folder, handle, method)
            folder.commit(state)  # a crash may have come between saving the state and this
            place = folder.take_checkpoint(state)
            if changed:  # the log must keep the event about it
                folder.drop_checkpoint()
                place = None
        if runtime.processes.in_step:
            shard(handle.core)
        written = place.written if place else state.events
        log = folder.open_events(written, step_seconds=config.log_seconds, listener=listener)
        stack.callback(log.close)
        run = Run(config, settings, folder, tasks, runtime, backbone, handle, method, state, log, place)
        take_config(run, changed)
        renew_probes(run)
        yield run


def checked_backbone(
    config: RunConfig, settings: dict[str, TaskSettings], tasks: list[TaskData], runtime: Runtime
) -> Backbone:
    """Load the backbone, and check that every task's kind and lengths fit it."""
    backbone = load_backbone(
        config.backbone,
        tokenizer=config.tokenizer,
        precision=runtime.precision,
        device=runtime.device,
        seed=config.seed,
    )
    for task in tasks:
        source_length, target_length = settings[task.name].source_length, settings[task.name].target_length
        if settings[task.name].gradient_checkpointing:
            check_checkpointing(backbone.model, task.name)
        target = target_length if task.kind.kind == "generation" else 0
        try:
            task.kind.check_model(backbone.model)
            check_lengths(backbone.model, task.name, source_length=source_length, target_length=target)
        except ValueError as error:
            raise ConfigError(f"task {task.name} on backbone {config.backbone}: {error}") from error
    return backbone


def make_method(config: RunConfig) -> Method:
    """Create the method with its options."""
    method = METHODS[config.method]
    return method(method.options_type(**config.method_options))


def restore(state: RunState, folder: RunFolder, handle: TssHandle, method: Method) -> None:
    """Restore what is finished into the handle and the method.

    Raises:
        StateError: a file is missing or changed, or the backbone is another one.
    """
    if handle.frozen_fingerprint() != state.frozen:
        raise StateError(
            f"{folder}: the backbone's or the adapters' frozen weights are not those the run began with; "
            "restore the same backbone, or start in another folder"
        )
    saved = folder.read_saved(state)
    if saved is None:
        return
    handle.restore(saved, str(folder))
    method.load_state(saved.extra)
    for sealed in state.sealed:
        if handle.fingerprint(sealed.name) != sealed.fingerprint:
            raise StateError(
                f"{folder}: gates and head of {sealed.name} are not those that were sealed; its file belongs to "
                "another run"
            )


def take_config(run: Run, changed: list[str]) -> None:
    """Save a configuration that differs from the run's where it may, and log the tasks whose settings changed."""
    values = run.config.resolved()
    if values == run.state.config:
        return
    run.state.config = values
    run.folder.write_result(run.state, run.folder.config, dump_config(run.config))
    if changed:
        run.log.emit("settings", tasks=changed, overrides={task: run.config.overrides.get(task) for task in changed})
        run.state.events = run.log.written()
    run.state.save(run.folder.state)


def renew_probes(run: Run) -> None:
    """Hash the probes of the sealed tasks again, and log an event if they or the environment differ.

    All that a run's predictions depend on was compared before this. So a difference in the last bits comes from the
    machine, another precision or another version of a library, and the new hashes must be kept from now on.
    """
    before, now = run.state.environment, run.runtime.signature()
    by_name = {task.name: task for task in run.tasks}
    sealed = [
        dataclasses.replace(task, probe=logits_hash(run.handle, task.name, run.probe(by_name[task.name]), run.runtime))
        for task in run.state.sealed
    ]
    moved = sealed != run.state.sealed and run.method.never_forgets
    changed = sorted(key for key in now if now[key] != before.get(key))
    if not changed and not moved:
        return
    run.state.sealed, run.state.environment = sealed, now
    run.log.emit("environment", changed=changed or ["last bits of the logits"], before=before, now=now)
