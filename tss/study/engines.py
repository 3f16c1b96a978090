"""Engines that run the cells of a study: processes on this machine, or tasks on a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import subprocess
import threading
from pathlib import Path
from typing import Any, Protocol

from tss.errors import ConfigError, StateError
from tss.study.cell import run_cell
from tss.study.plan import Cell

Ended = list[tuple[Cell, str | None]]
RETRIES = 5
"""Maximum number of times that Ray restarts a cell whose worker or machine was lost."""


class Engine(Protocol):
    """Runs cells with `run_cell`, up to `capacity` at a time."""

    capacity: int

    def start(self, cell: Cell) -> None:
        """Start a cell; return at once."""
        ...

    def ended(self, seconds: float) -> Ended:
        """Return cells that ended since the last call, with their error or None; wait up to `seconds` for the first."""
        ...

    def told(self) -> list[tuple[Cell, dict[str, Any]]]:
        """Return the progress messages of running cells since the last call."""
        ...

    def stop(self) -> None:
        """Stop all running cells so that each can resume where it was; return when all have stopped."""
        ...


def usable_cores() -> int:
    """Return the number of threads for all cells: OMP_NUM_THREADS if set, otherwise the cores of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Engine that runs cells in processes on this machine.

    Args:
        root: folder of the study.
        workers: number of cells at a time.
        threads: number of threads per cell.
    """

    def __init__(self, root: Path, workers: int, threads: int) -> None:
        self.capacity, self._root, self._threads = workers, root, threads
        self._told: queue.SimpleQueue[tuple[Cell, dict[str, Any]]] = queue.SimpleQueue()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: queue.Queue[tuple[Cell, str | None]] = queue.Queue()
        self._waiting: list[threading.Thread] = []
        self._stopped = threading.Event()

    def start(self, cell: Cell) -> None:
        def started(process: subprocess.Popen[bytes]) -> None:
            self._running[cell.name] = process
            if self._stopped.is_set():
                _close(process)

        def wait() -> None:
            try:
                error = run_cell(
                    str(self._root),
                    cell,
                    self._threads,
                    os.getcwd(),
                    lambda told: self._told.put((cell, told)),
                    started,
                )
            except Exception as problem:  # the process could not be started, or wrote an invalid message
                error = f"{type(problem).__name__}: {problem}"
            self._running.pop(cell.name, None)
            self._ended.put((cell, error))

        thread = threading.Thread(target=wait, name=cell.name, daemon=True)
        self._waiting = [other for other in self._waiting if other.is_alive()] + [thread]
        thread.start()

    def ended(self, seconds: float) -> Ended:
        found: Ended = []
        with contextlib.suppress(queue.Empty):
            found.append(self._ended.get(timeout=seconds))
            while True:
                found.append(self._ended.get_nowait())
        return found

    def told(self) -> list[tuple[Cell, dict[str, Any]]]:
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._told.get_nowait())
        return found

    def stop(self) -> None:
        self._stopped.set()
        for process in list(self._running.values()):
            _close(process)
        for thread in self._waiting:
            thread.join()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            process.stdin.close()


class RayTasks:
    """Engine that runs cells on a Ray cluster whose machines share the study's folder and have tss installed.

    A cell whose worker dies is restarted, possibly on another machine, and resumes where it was.

    Args:
        root: folder of the study.
        address: address of the cluster; "local" starts one on this machine.
        workers: number of cells at a time; None: as many as the cluster has cores for.
        threads: number of threads per cell, and of cores that it requests from the cluster.

    Raises:
        ConfigError: ray is not installed.
        StateError: no cluster responds at the address.
    """

    def __init__(self, root: Path, address: str, workers: int | None, threads: int) -> None:
        try:
            ray: Any = importlib.import_module("ray")  # its own annotations do not allow a mapping of options
        except ImportError as error:
            raise ConfigError("--ray needs the package ray: pip install 'tss[ray]'") from error
        self._ray, self._root, self._threads = ray, root.absolute(), threads
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        except ConnectionError as error:
            raise StateError(f"--ray {address}: no Ray cluster answers there ({error})") from error
        resources = ray.cluster_resources()
        self.capacity = workers or max(1, int(resources.get("CPU", 1)) // threads)
        options = {"num_cpus": threads, "max_retries": RETRIES, "num_gpus": 1 if resources.get("GPU") else 0}
        self._task = ray.remote(**options)(run_cell)
        self._running: dict[Any, Cell] = {}

    def start(self, cell: Cell) -> None:
        self._running[self._task.remote(str(self._root), cell, self._threads, os.getcwd())] = cell

    def ended(self, seconds: float) -> Ended:
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        found: Ended = []
        for reference in done:
            cell = self._running.pop(reference)
            try:
                found.append((cell, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                found.append((cell, f"its Ray task was lost: {str(error).splitlines()[0]}"))
        return found

    def told(self) -> list[tuple[Cell, dict[str, Any]]]:
        return []  # a Ray task reports nothing before it ends

    def stop(self) -> None:
        self._ray.shutdown()  # ends the workers; their cell processes then stop by themselves
