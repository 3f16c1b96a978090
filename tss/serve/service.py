"""Learned tasks and the thread that runs them; independent of HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from tss.data import Malformed, check_input
from tss.data.schema import ANSWERS, FIELDS, unknown_field
from tss.errors import StateError
from tss.run.answering import CANNOT, Answer, share_of
from tss.run.learned import Learned, Question, TooLong, UnknownTask, unknown_task
from tss.serve.batcher import Batcher, Closed, QueueFull
from tss.serve.errors import ApiError, log
from tss.serve.metrics import Metrics
from tss.serve.settings import ServeSettings
from tss.tasks import Generation, TaskKind

if TYPE_CHECKING:
    from tss.adapters import TssModel

CHARACTERS = 8
"""Maximum characters of an input for each token that it may have; texts have four or five."""


class Service:
    """Predicts with the sealed tasks of a model, which from now on only this service's thread may use.

    Args:
        learned: the model and its tasks.
        settings: limits.
    """

    def __init__(self, learned: Learned, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self._learned = learned
        self._batcher = Batcher(
            learned.answer,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            on_batch=self.metrics.batch,
        )
        self.metrics.watch(lambda: self._batcher.waiting, lambda: len(learned.kinds))

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self._batcher.ready

    @property
    def waiting(self) -> int:
        """Inputs in the queue."""
        return self._batcher.waiting

    @property
    def task_names(self) -> Sequence[str]:
        """Names of the tasks that are served."""
        return list(self._learned.kinds)

    def tasks(self) -> list[dict[str, Any]]:
        """Describe each served task: name, kind, the fields that it reads, and its labels or decoding parameters."""
        return [self._about(name, kind) for name, kind in self._learned.kinds.items()]

    def _about(self, name: str, kind: TaskKind) -> dict[str, Any]:
        needed, optional = FIELDS[kind.kind]
        about: dict[str, Any] = {"task": name, "kind": kind.kind}
        about["fields"] = [one for one in needed if one != ANSWERS[kind.kind]]
        about["optional_fields"] = [one for one in optional if one != "context"]
        if isinstance(kind, Generation):
            names = ("num_beams", "min_new_tokens", "max_new_tokens", "no_repeat_ngram_size")
            about["parameters"] = {name: getattr(kind, name) for name in names}
        else:
            about["labels"] = list(getattr(kind, "labels", ()))
        return about

    def submit(
        self,
        task: str,
        inputs: Sequence[tuple[str, Mapping[str, Any]]],
        parameters: Mapping[str, int] | None = None,
        on_text: Callable[[str], object] | None = None,
    ) -> list[Future[Answer]]:
        """Queue inputs of a task, all of them or none; pass results of the futures to `result_of`.

        Args:
            task: name of the task.
            inputs: (name of the input for messages, its fields).
            parameters: decoding parameters that override the task's own.
            on_text: as in `Question`; for one input of a task that generates greedily.

        Raises:
            ApiError: no such task, invalid inputs or parameters, the queue is full, or the service is closed.
        """
        kinds = self._learned.kinds
        if task not in kinds:
            raise ApiError("unknown_task", unknown_task(task, kinds))
        kind = self._decoding(task, kinds[task], parameters or {})
        if on_text is not None and not (isinstance(kind, Generation) and kind.num_beams == 1):
            searched = f"searches with {kind.num_beams} beams" if isinstance(kind, Generation) else f"is {kind.kind}"
            raise ApiError(
                "invalid_parameters",
                f"task {task!r} {searched}, and only text generated with one beam can be streamed: leave stream out"
                + (', or ask for {"num_beams": 1}' if isinstance(kind, Generation) else ""),
            )
        questions = []
        for called, given in inputs:
            try:
                example = check_input(given, kind.kind)
            except Malformed as error:
                raise ApiError("invalid_input", f"{called}: {error} (task {task})") from None
            if (name := unknown_field(given, kind.kind)) is not None:  # a misspelled field would change the prediction
                reads = ", ".join(sum(FIELDS[kind.kind], ()))
                message = f"{called}: no field {name[:80]!r} in {kind.kind}, which has {reads} (task {task})"
                raise ApiError("invalid_input", message)
            # Tokenizers process the whole text before they truncate it, on the thread that all requests wait for.
            size = sum(len(part) for value in example.values() for part in value)
            if size > (most := CHARACTERS * self.settings.max_tokens):
                raise ApiError("input_too_long", f"{called}: {size} characters are over this server's limit of {most}")
            questions.append(Question(task, example, kind, on_text, self.settings.max_tokens))
        key = share_of(self._learned.model.core, kind, self._learned.settings_of(task).eval_batch_size)
        try:
            return self._batcher.submit([(key, question) for question in questions])
        except QueueFull as error:
            raise ApiError("queue_full", str(error), {"Retry-After": str(error.retry_after)}) from None
        except Closed as error:
            raise ApiError("shutting_down", str(error)) from None

    def _decoding(self, task: str, kind: TaskKind, given: Mapping[str, int]) -> TaskKind:
        if not given:
            return kind
        if not isinstance(kind, Generation):
            raise ApiError("invalid_parameters", f"task {task!r} is {kind.kind}, which takes no parameters")
        most = {"num_beams": self.settings.max_beams, "max_new_tokens": self.settings.max_new_tokens}
        for name, limit in most.items():
            if given.get(name, 0) > (limit := max(limit, getattr(kind, name))):
                raise ApiError("invalid_parameters", f"{name}={given[name]} is over this server's limit of {limit}")
        try:
            return dataclasses.replace(kind, **given)
        except ValueError as error:
            raise ApiError("invalid_parameters", f"{error} (task {task})") from None

    def cancel(self, futures: Sequence[Future[Any]]) -> None:
        """Remove inputs that have not started from the queue."""
        self._batcher.cancel(futures)

    def reload(self) -> Future[list[str]]:
        """Add tasks that were learned in the folder since, and return their names. Raises as `Learned.reload`."""
        return self._batcher.call(self._learned.reload)

    def change(self, function: Callable[[TssModel], Any]) -> Future[Any]:
        """Run a function of the model between two batches; afterwards, all its sealed tasks are served.

        This lets a program add tasks while serving: `service.change(lambda model: tss.load(model, folder))`.
        """

        def run() -> Any:
            try:
                return function(self._learned.model)
            finally:
                self._learned.refresh()

        return self._batcher.call(run)

    def close(self) -> None:
        """Accept nothing more, and return after all accepted inputs are answered."""
        self._batcher.close()


def result_of(called: str, found: Answer | BaseException) -> Answer:
    """Return the answer to an input from its future's result or exception.

    Raises:
        ApiError: there is no answer; `called` is the name of the input in messages.
        Exception: `found` is an exception of another type, which is unexpected.
    """
    if isinstance(found, Answer):
        return found
    if isinstance(found, TooLong):
        raise ApiError("input_too_long", f"{called}: {found}")
    if isinstance(found, UnknownTask):
        raise ApiError("unknown_task", str(found))
    if isinstance(found, StateError):  # a task that is kept on disk cannot be read from its folder
        log.error("a task cannot be read: %s", found)
        raise ApiError("task_unavailable", "the task's files cannot be read now")
    if isinstance(found, CANNOT):
        raise ApiError("cannot_answer", f"{called}: cannot be answered: {found}")
    raise found
