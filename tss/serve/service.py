"""Learned tasks, and the thread that answers for them; knows no HTTP."""

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
"""Characters of an input for each token that it may have; texts have four or five."""


class Service:
    """Answers for the sealed tasks of a model, which from now on belongs to this service's thread.

    Args:
        learned: model and tasks.
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
        """Whether requests are taken."""
        return self._batcher.ready

    @property
    def waiting(self) -> int:
        """Inputs in the queue."""
        return self._batcher.waiting

    @property
    def task_names(self) -> Sequence[str]:
        """Those that answer."""
        return list(self._learned.kinds)

    def tasks(self) -> list[dict[str, Any]]:
        """Each task that answers: name, kind, the fields that it reads, and its labels or its decoding."""
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
        """Queue inputs of a task, all of them or none; `result_of` reads the futures.

        Args:
            task: that is to answer.
            inputs: (what messages call it, its fields).
            parameters: of decoding, in place of the task's own.
            on_text: as in `Question`; for one input of a task that generates greedily.

        Raises:
            ApiError: no such task, an input or parameters that it does not take, no room, or the end.
        """
        kinds = self._learned.kinds
        if task not in kinds:
            raise ApiError("unknown_task", unknown_task(task, kinds))
        kind = self._decoding(task, kinds[task], parameters or {})
        if on_text is not None and not (isinstance(kind, Generation) and kind.num_beams == 1):
            searched = f"searches with {kind.num_beams} beams" if isinstance(kind, Generation) else f"is {kind.kind}"
            raise ApiError(
                "invalid_parameters",
                f"task {task!r} {searched}, and only text of one beam is known before it is whole: leave stream out"
                + (', or ask for {"num_beams": 1}' if isinstance(kind, Generation) else ""),
            )
        questions = []
        for called, given in inputs:
            try:
                example = check_input(given, kind.kind)
            except Malformed as error:
                raise ApiError("invalid_input", f"{called}: {error} (task {task})") from None
            if (name := unknown_field(given, kind.kind)) is not None:  # a field misspelt gives another answer
                reads = ", ".join(sum(FIELDS[kind.kind], ()))
                message = f"{called}: no field {name[:80]!r} in {kind.kind}, which has {reads} (task {task})"
                raise ApiError("invalid_input", message)
            # Tokenizers read all of a text before they cut it, on the thread that everybody waits for.
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
        """Forget inputs that have not begun to be answered."""
        self._batcher.cancel(futures)

    def reload(self) -> Future[list[str]]:
        """Add the tasks that were learned in the folder since; their names. Raises as `Learned.reload`."""
        return self._batcher.call(self._learned.reload)

    def change(self, function: Callable[[TssModel], Any]) -> Future[Any]:
        """Run a function of the model between two batches; what is sealed in it afterwards answers.

        So a program adds tasks while it serves: `service.change(lambda model: tss.load(model, folder))`.
        """

        def run() -> Any:
            try:
                return function(self._learned.model)
            finally:
                self._learned.refresh()

        return self._batcher.call(run)

    def close(self) -> None:
        """Take nothing more, and return when all that was taken is answered."""
        self._batcher.close()


def result_of(called: str, found: Answer | BaseException) -> Answer:
    """The answer to an input, from what its future has: a result or an exception.

    Raises:
        ApiError: there is none; `called` is what messages call the input.
        Exception: of another kind, a fault.
    """
    if isinstance(found, Answer):
        return found
    if isinstance(found, TooLong):
        raise ApiError("input_too_long", f"{called}: {found}")
    if isinstance(found, UnknownTask):
        raise ApiError("unknown_task", str(found))
    if isinstance(found, StateError):  # a task that was left in the folder cannot be read from it
        log.error("a task cannot be read: %s", found)
        raise ApiError("task_unavailable", "the task's files cannot be read now")
    if isinstance(found, CANNOT):
        raise ApiError("cannot_answer", f"{called}: cannot be answered: {found}")
    raise found
