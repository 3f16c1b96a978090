"""`pytest bench/ --benchmark`: pytest and pytest-benchmark in front of `bench.measure`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SESSION = pytest.StashKey[Any]()
HOW = "a benchmark: run it with pytest bench/ --benchmark"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks of this package")
    group.addoption("--benchmark", action="store_true", help="run what lies in bench/; without it all of it is skipped")
    group.addoption("--benchmark-device", choices=("cpu", "cuda"), help="a GPU where there is one")
    group.addoption("--benchmark-tiny", action="store_true", help="tiny sizes, to see that everything runs")
    group.addoption("--benchmark-threads", type=int, metavar="N", help="CPU cores to be bound to (all)")
    group.addoption("--benchmark-seconds", type=float, metavar="S", help="of each variant's repeats")
    group.addoption("--benchmark-out", type=Path, metavar="FILE",
                    help="the JSON file of this package's own form (bench/results/<machine>-<date>.json)")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Refuse at once what no benchmark could run with."""
    if not config.getoption("--benchmark"):
        return
    obstacle = _obstacle(config)
    if obstacle is not None:
        raise pytest.UsageError(obstacle)


def _obstacle(config: pytest.Config) -> str | None:
    import torch

    from bench.measure.session import RESULTS, cores

    seconds, out = config.getoption("--benchmark-seconds"), config.getoption("--benchmark-out")
    threads, most = config.getoption("--benchmark-threads"), len(cores())
    folder = RESULTS if out is None else out.absolute().parent
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        return "benchmarks run one at a time: leave -n out"
    if config.getoption("--benchmark-device") == "cuda" and not torch.cuda.is_available():
        return "--benchmark-device cuda, but PyTorch finds no GPU: leave it out to measure the CPU"
    if seconds is not None and not 0 <= seconds < math.inf:
        return f"--benchmark-seconds must be a number of seconds, 0 or more, but is {seconds}"
    if threads is not None and not 1 <= threads <= most:
        return f"--benchmark-threads must be 1 to {most}, the cores that this process may use, but is {threads}"
    if out is not None and out.is_dir():
        return f"--benchmark-out must be a file, but {out} is a folder: name a file in it"
    at = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(at, os.W_OK):
        return f"results cannot be written to {folder}: name a file elsewhere with --benchmark-out"
    return None


class Replay:
    """A clock for pytest-benchmark that shows durations which were measured before: each round takes the next one.

    A GPU's events, and competitors that take turns, cannot be timed from the inside of one test; so `bench.measure`
    times, and this hands its numbers over through pytest-benchmark's own `timer` option.
    """

    def __init__(self) -> None:
        self._now, self._steps = 0.0, iter(())

    def load(self, seconds: list[float]) -> None:
        """Durations of the rounds to come. Each round reads the clock twice: at its start, and after it."""
        self._steps = iter([step for duration in seconds for step in (0.0, duration)])

    def __call__(self) -> float:
        self._now += next(self._steps, 0.0)
        return self._now


def _device(config: pytest.Config) -> str:
    import torch

    return config.getoption("--benchmark-device") or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Any:
    from bench.measure.session import Session

    pytestconfig.stash[SESSION] = Session(
        _device(pytestconfig), small=bool(pytestconfig.getoption("--benchmark-tiny")),
        threads=pytestconfig.getoption("--benchmark-threads"), out=pytestconfig.getoption("--benchmark-out"),
        seconds=pytestconfig.getoption("--benchmark-seconds"),
    )  # fmt: skip
    return pytestconfig.stash[SESSION]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "measured" not in metafunc.fixturenames:
        return
    if not metafunc.config.getoption("--benchmark"):
        metafunc.parametrize("measured", [pytest.param(None, marks=pytest.mark.skip(reason=HOW), id="benchmarks")])
        return
    metafunc.parametrize("measured", list(_parameters(metafunc.config)))


@dataclasses.dataclass(frozen=True)
class Measured:
    """One variant of one case, and the clock that its test shows pytest-benchmark."""

    group: str
    case: Any
    variant: str
    clock: Replay


def _parameters(config: pytest.Config) -> Iterator[Any]:
    import torch

    from bench.measure.cases import GROUPS
    from bench.measure.cases.sizes import published, tiny
    from bench.measure.runner import not_measured
    from bench.measure.session import NAMES

    device = torch.device(_device(config))
    sizes = tiny(device) if config.getoption("--benchmark-tiny") else published(device)
    for group in NAMES:
        for case in GROUPS[group](sizes):
            title = f"{group}: {case}" + (f" (along {case.curve})" if case.curve else "")
            for variant in case.variants:
                clock, reason = Replay(), not_measured(case, variant, device)
                marks = [pytest.mark.benchmark(group=title, timer=clock)]
                if reason is not None:
                    marks.append(pytest.mark.skip(reason=reason))
                one = Measured(group, case, variant.name, clock)
                yield pytest.param(one, marks=marks, id=f"{title}: {variant.name}")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    if SESSION in config.stash:
        machine_info["tss"] = config.stash[SESSION].machine


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        terminalreporter.write_line("bench/: nothing was timed; add --benchmark")
        return
    session = config.stash.get(SESSION, None)
    if session is not None:
        from bench.measure.report import table

        terminalreporter.write_line(f"\n{table(session.records())}\n\nresults: {session.report.path}")
