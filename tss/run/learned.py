"""Learned tasks opened for prediction: those of a run, or those that `model.tss.save` wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.adapters import saving
from tss.adapters.loading import restore
from tss.errors import ConfigError, DataError, StateError
from tss.run.answering import CANNOT, Answer, Row, answer_each
from tss.run.backbone import Backbone, identity, load_backbone, longest_source, resolve_device, resolve_precision
from tss.run.config import RunConfig, TaskSettings, load_config, settings_for
from tss.run.examples import encode_split
from tss.run.folder import RunFolder
from tss.run.run_state import RunState, check_same
from tss.run.runtime import Runtime
from tss.tasks import TaskKind
from tss.tasks.base import Example

if TYPE_CHECKING:
    from tss.adapters import TssHandle, TssModel


@dataclass(frozen=True)
class Question:
    """Input of a task.

    Attributes:
        task: name of the task.
        example: example in the form that the task's kind reads, checked.
        kind: the task's kind with other decoding settings; None: as it was trained.
        on_text: as in `Row`.
        most_tokens: maximum number of input tokens, more are refused; None: any number. What exceeds the task's own
            length is cut.
    """

    task: str
    example: Example
    kind: TaskKind | None = None
    on_text: Callable[[str], object] | None = None
    most_tokens: int | None = None


class TooLong(DataError):
    """Input with more tokens than are allowed."""


class UnknownTask(StateError):
    """Task that is not learned here, or no longer."""


@dataclass
class Learned:
    """Backbone with gates (or plain adapters) and heads.

    Attributes:
        folder: where the tasks come from.
        config: configuration of the run, or the defaults.
        backbone, model, runtime: used for prediction.
        cache_bytes: as in `tss.load`: sealed tasks stay in the folder, with at most this many bytes of them in memory.
        kinds: kinds of the sealed tasks, by name; replaced by a new mapping when the tasks change.
    """

    folder: Path
    config: RunConfig
    backbone: Backbone
    model: TssModel
    runtime: Runtime
    cache_bytes: int | None = None
    kinds: Mapping[str, TaskKind] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._settings: dict[str, TaskSettings] = {}
        self.refresh()

    @property
    def handle(self) -> TssHandle:
        """Handle of the model."""
        return self.model.tss

    def refresh(self) -> None:
        """Update `kinds` for tasks that were sealed in the model, or deleted from it, since the last call."""
        kinds = {name: record.kind for name, record in self.handle.tasks.items() if record.state == "sealed"}
        self._settings |= {name: settings_for(self.config, name) for name in kinds if name not in self._settings}
        self.kinds = kinds

    def settings_of(self, task: str) -> TaskSettings:
        """Return the lengths and batch size that a task was trained with; defaults and the longest input for a save."""
        return self._settings[task]

    def predict(self, rows: Sequence[tuple[str, Example]]) -> list[Any]:
        """Return the prediction for each (task, example), in order.

        Raises:
            ValueError, IndexError, RuntimeError, MemoryError, StateError: an input cannot be predicted, or its task is
                unknown or cannot be read.
        """
        answers = self.answer([Question(task, example) for task, example in rows])
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer.prediction for answer in answers]  # type: ignore[union-attr]

    def answer(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """Return the answer to each question, in order, or the exception; rows that can share a batch do."""
        answers: list[Any] = self._rows(questions)
        places = [i for i, row in enumerate(answers) if isinstance(row, Row)]
        found = answer_each(self.model, [answers[i] for i in places], self.backbone.tokenizer, self.runtime)
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
        return answers

    def _rows(self, questions: Sequence[Question]) -> list[Row | Exception]:
        """Encode each question, all of a task in one call of the tokenizer; exceptions replace rows that failed."""
        rows: list[Any] = [None] * len(questions)
        places: dict[str, list[int]] = {}
        for place, question in enumerate(questions):
            places.setdefault(question.task, []).append(place)
        for task, of_task in places.items():
            if task not in self.kinds:  # the task was deleted after the question was asked
                found: list[Row | Exception] = [UnknownTask(unknown_task(task, self.kinds))] * len(of_task)
            else:
                try:
                    found = list(self._encode([questions[i] for i in of_task]))
                except CANNOT:
                    found = [self._encode_one(questions[i]) for i in of_task]
            for place, row in zip(of_task, found, strict=True):
                rows[place] = self._measured(questions[place], row) if isinstance(row, Row) else row
        return rows

    def _encode_one(self, question: Question) -> Row | Exception:
        try:
            return self._encode([question])[0]
        except CANNOT as error:
            return error

    def _encode(self, questions: Sequence[Question]) -> list[Row]:
        """Encode questions of one task."""
        task = questions[0].task
        settings, kind = self.settings_of(task), self.kinds[task]
        split = encode_split([one.example for one in questions], kind, self.backbone.tokenizer, settings)
        return [
            Row(task, one.kind or kind, one.example, encoded, settings.eval_batch_size, on_text=one.on_text)
            for one, encoded in zip(questions, split.encoded, strict=True)
        ]

    def _measured(self, question: Question, row: Row) -> Row | TooLong:
        """Return the row, marked if its input was cut, or `TooLong`; unchanged if the question has no `most_tokens`."""
        most, length, found = (
            question.most_tokens,
            self.settings_of(row.task).source_length,
            len(row.encoded["input_ids"]),
        )
        if most is None or found < min(length, most + 1):
            return row
        if found <= most:  # as many tokens as the task reads: the input may have had more
            longer = self.settings_of(row.task).model_copy(update={"source_length": most + 1})
            split = encode_split([row.example], self.kinds[row.task], self.backbone.tokenizer, longer)
            found = len(split.encoded[0]["input_ids"])
        if found > most:
            return TooLong(f"the input has more than {most} tokens; shorten it")
        return dataclasses.replace(row, cut=found > length)

    def reload(self) -> list[str]:
        """Add tasks that were learned in the folder since it was opened, and return their names.

        Tasks that are already loaded stay, even if the folder has lost them.

        Raises:
            StateError: the folder cannot be read, or it has a different task under the name of a loaded one: a sealed
                task never changes. Nothing is added then.
        """
        state, saved = _read(self.folder, keep=self.cache_bytes is not None)
        there = self.handle.tasks
        for about in _sealed(saved):
            if about["name"] in there and about.get("hash") != there[about["name"]].hash:
                raise StateError(
                    f"{self.folder}: task {about['name']!r} is not the one that is loaded here, and a sealed "
                    "task never changes: save the new one under another name, or restart"
                )
        new = [about["name"] for about in _sealed(saved) if about["name"] not in there]
        if new:
            tasks = [(tensors, about) for tensors, about in saved.tasks if about["name"] in new]
            kept = [(read, about) for read, about in saved.kept if about["name"] in new]
            restore(self.model, dataclasses.replace(saved, tasks=tasks, kept=kept), str(self.folder))
            if state is not None:
                self.config = load_config(state.config)
            self.refresh()
        return new


def unknown_task(name: object, kinds: Mapping[str, Any]) -> str:
    """Return the message about a name that no task has."""
    told = repr(name)
    told = told if len(told) <= 200 else f"{told[:200]}..."
    return f"task {told} is not learned in this folder; it has: {', '.join(kinds)}"


def open_learned(
    folder: Path | str,
    *,
    backbone: str | None = None,
    tokenizer: str | None = None,
    cache_bytes: int | None = None,
) -> Learned:
    """Open a run folder, finished or not, or a folder that `model.tss.save` wrote. Nothing in it is changed.

    Args:
        folder: folder of a run, or one with `tss.json`.
        backbone: model folder or hub name; None: the one that the folder names.
        tokenizer: folder or hub name; None: the backbone's own.
        cache_bytes: leave sealed tasks in the folder, which must remain available, and keep at most this many bytes of
            them in memory; None: read all now.

    Raises:
        StateError: the folder is of neither kind, has no learned task yet, or a file is missing, truncated or edited.
        ConfigError: the backbone cannot be loaded here, or a saved folder does not name it.
    """
    state, saved = _read(folder, keep=cache_bytes is not None)
    if not _sealed(saved):
        raise StateError(f"{folder}: no task is learned yet")
    if state is not None:  # config.yaml may have been edited since
        config = load_config(state.config)
    else:
        name = backbone or saved.backbone.get("name")
        if not name:
            raise ConfigError(f"{folder} does not say which backbone it was learned on: name it with --backbone")
        config = load_config({"backbone": name})
    device = resolve_device(config.device)
    runtime = Runtime(device, resolve_precision(config.precision, device))
    base = load_backbone(
        backbone or config.backbone,
        tokenizer=tokenizer or config.tokenizer,
        precision=runtime.precision,
        device=runtime.device,
        seed=config.seed,
    )
    if state is not None:
        check_same(f"{folder} cannot be used here: the {{}}", state.backbone, identity(base))
    model = restore(base.model, saved, str(folder))
    model.eval()
    if state is None:  # a save does not say how long the inputs were: read as much as the backbone can
        longest = longest_source(base, config.training.target_length)
        config = config.model_copy(update={"training": config.training.model_copy(update={"source_length": longest})})
    model.tss.store.cache.limit = cache_bytes
    return Learned(RunFolder(folder).path, config, base, model, runtime, cache_bytes)


def _sealed(saved: saving.SavedTasks) -> list[dict[str, Any]]:
    """Return the metadata of the sealed tasks."""
    return [about for _, about in (*saved.kept, *saved.tasks) if about["state"] == "sealed"]


def _read(folder: Path | str, *, keep: bool) -> tuple[RunState | None, saving.SavedTasks]:
    """Read a folder: the state of a run (None if it is not a run's) and its tasks."""
    files = RunFolder(folder)
    if not files.path.is_dir():
        raise StateError(f"{folder}: no such folder{'' if files.path.is_absolute() else f' in {Path.cwd()}'}")
    if not files.state.is_file():
        return None, saving.read(files.path, keep=keep)
    while True:
        state = files.load_state()
        if not state.sealed:
            raise StateError(f"{folder}: no task is learned yet")
        try:
            return state, saving.read(files.path, state.saved, keep=keep)
        except StateError:
            if files.load_state().saved == state.saved:
                raise
            # the run has saved its next task meanwhile
