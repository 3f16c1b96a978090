"""Thread that runs the items of a bounded queue, in batches of items that can run together."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

LONGEST_RETRY = 60
"""Maximum number of seconds that a rejected request is told to wait."""
MEMORY = 0.8  # weight of the previous value in the moving average of the time per item


class QueueFull(Exception):
    """Raised when the items to queue would exceed the limit of the queue.

    Attributes:
        retry_after: whole number of seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closed(Exception):
    """Raised when no more items are accepted."""


@dataclass(eq=False)
class _Waiting:
    key: Hashable
    item: Any
    arrived: float
    future: Future[Any] = field(default_factory=Future)


class Batcher:
    """Runs items in batches on its own thread: the oldest item first, together with others of the same key.

    While the thread is idle, the oldest item waits for others of its key for at most `max_wait` seconds; a full batch
    starts at once. Every accepted item gets a result or an exception, also after `close`.

    Args:
        run: returns a result or an exception for each item of a batch; an exception that it raises goes to all items.
        max_batch: maximum number of items in a batch.
        max_wait: seconds.
        max_queue: maximum number of waiting items.
        on_batch: called with the size of each batch before it runs.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        on_batch: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._run, self._on_batch = run, on_batch
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._waiting: deque[_Waiting] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds_per_item = 0.0
        self._thread = threading.Thread(target=self._work, name="tss-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        return len(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether items are accepted and the thread is alive."""
        return not self._closed and self._thread.is_alive()

    def submit(self, items: Sequence[tuple[Hashable, Any]]) -> list[Future[Any]]:
        """Queue (key, item) pairs, all of them or none; return futures of their results, in the same order.

        Raises:
            QueueFull: the limit of the queue would be exceeded.
            Closed: no more items are accepted.
        """
        with self._changed:
            if self._closed:
                raise Closed("the server is shutting down")
            if len(self._waiting) + len(items) > self._max_queue:
                seconds = math.ceil(len(self._waiting) * self._seconds_per_item)
                raise QueueFull(
                    f"{len(self._waiting)} inputs are waiting, and {len(items)} more would exceed the limit of "
                    f"{self._max_queue}",
                    min(LONGEST_RETRY, max(1, seconds)),
                )
            now = time.monotonic()
            queued = [_Waiting(key, item, now) for key, item in items]
            self._waiting.extend(queued)
            self._changed.notify()
        return [one.future for one in queued]

    def cancel(self, futures: Sequence[Future[Any]]) -> None:
        """Remove the items of these futures that have not started from the queue."""
        with self._changed:
            gone = {id(future) for future in futures if future.cancel()}
            if gone:
                self._waiting = deque(one for one in self._waiting if id(one.future) not in gone)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function on the thread, between two batches.

        Raises:
            Closed: no more calls are accepted.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise Closed("the server is shutting down")
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Accept nothing more, and return after everything accepted has run."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (work := self._next()) is None:
                    if self._closed and not self._waiting and not self._calls:
                        return
                    self._changed.wait(self._patience())
            work()

    def _next(self) -> Callable[[], None] | None:
        """Remove the next work from the queue and return it; None if there is nothing to run yet."""
        if self._calls:
            function, future = self._calls.popleft()
            return lambda: _settle(future, function)
        if not self._waiting:
            return None
        first = self._waiting[0]
        batch: list[_Waiting] = []
        for one in self._waiting:
            if one.key == first.key:
                batch.append(one)
                if len(batch) == self._max_batch:
                    break
        if len(batch) < self._max_batch and not self._closed and self._patience() > 0:  # type: ignore[operator]
            return None
        taken = set(map(id, batch))
        self._waiting = deque(one for one in self._waiting if id(one) not in taken)
        # After this, these items cannot be cancelled.
        batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
        return lambda: self._run_batch(batch)

    def _patience(self) -> float | None:
        """Return the seconds that the oldest item still waits for others; None if the queue is empty."""
        return self._waiting[0].arrived + self._max_wait - time.monotonic() if self._waiting else None

    def _run_batch(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        started = time.monotonic()
        try:
            self._on_batch(len(batch))
            results = self._run([one.item for one in batch])
        except BaseException as error:  # callers must get any error, and the thread must continue
            results = [error] * len(batch)
        for one, result in zip(batch, results, strict=True):
            if isinstance(result, BaseException):
                one.future.set_exception(result)
            else:
                one.future.set_result(result)
        found = (time.monotonic() - started) / len(batch)
        known = self._seconds_per_item or found
        self._seconds_per_item = MEMORY * known + (1 - MEMORY) * found


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # as above
        future.set_exception(error)
