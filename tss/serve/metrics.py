"""Prometheus metrics of a server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Metrics of one server; nothing is shared with other servers in the process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tss_requests", "Prediction requests, by task and status", ["task", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tss_request_seconds",
            "Time from the first byte of a prediction request to the last byte of its response",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batch = Histogram("tss_batch_inputs", "Inputs per batch", buckets=SIZES, registry=self._registry)
        self._waiting = Gauge("tss_queue_inputs", "Inputs waiting in the queue", registry=self._registry)
        self._tasks = Gauge("tss_tasks", "Tasks that are served", registry=self._registry)

    def watch(self, waiting: Callable[[], float], tasks: Callable[[], float]) -> None:
        """Set the functions that return the queue's length and the number of tasks, called at each scrape."""
        self._waiting.set_function(waiting)
        self._tasks.set_function(tasks)

    def batch(self, size: int) -> None:
        """Count a batch of `size` inputs."""
        self._batch.observe(size)

    def request(self, task: str, status: int, seconds: float) -> None:
        """Count a finished request for predictions; `task` is empty unless it names a task that is served."""
        self._requests.labels(task, str(status)).inc()
        self._seconds.observe(seconds)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)
