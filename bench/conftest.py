"""`pytest bench/ --benchmark`: cases as tests, their times in pytest-benchmark's tables, files and comparisons."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

HOW = "a benchmark: run it with pytest bench/ --benchmark"
RESULTS = pytest.StashKey["Results"]()
END = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks of this package")
    group.addoption("--benchmark", action="store_true", help="run the benchmarks in bench/, otherwise all are skipped")
    group.addoption("--benchmark-device", choices=("cpu", "cuda"), help="cuda if there is a GPU")
    group.addoption("--benchmark-tiny", action="store_true", help="tiny sizes, to check that everything runs")
    group.addoption("--benchmark-threads", type=int, metavar="N", help="number of CPU cores to bind to (all)")
    group.addoption("--benchmark-seconds", type=float, metavar="S", help="time for each variant's repeats")
    group.addoption("--benchmark-stop-after", type=float, metavar="S", help="start no case after this time")


def pytest_configure(config: pytest.Config) -> None:
    """Reject options with which no benchmark could run; the time limit counts from here."""
    limit = config.getoption("--benchmark-stop-after")
    config.stash[END] = math.inf if limit is None else time.monotonic() + limit
    if config.getoption("--benchmark") and (obstacle := _obstacle(config)) is not None:
        raise pytest.UsageError(obstacle)


def _obstacle(config: pytest.Config) -> str | None:
    import torch

    from bench.core.machine import cores

    seconds, threads = config.getoption("--benchmark-seconds"), config.getoption("--benchmark-threads")
    if importlib.util.find_spec("pytest_benchmark") is None:
        return "the package pytest-benchmark is not installed: pip install pytest-benchmark"
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        return "benchmarks run one at a time: omit -n"
    if config.getoption("--benchmark-device") == "cuda" and not torch.cuda.is_available():
        return "--benchmark-device cuda, but PyTorch finds no GPU: omit it to measure the CPU"
    if seconds is not None and not 0 <= seconds < math.inf:
        return f"--benchmark-seconds must be a number of seconds, 0 or more, but is {seconds}"
    if threads is not None and not 1 <= threads <= len(cores()):
        return f"--benchmark-threads must be 1 to {len(cores())}, the cores that this process may use, but is {threads}"
    return None


@dataclass(frozen=True)
class Planned:
    """A case of a group, and its title in tables and comparisons."""

    group: str
    case: Any

    @property
    def title(self) -> str:
        """The title, unique in a run, and the same in every run."""
        return f"{self.group}: {self.case}"


@dataclass
class _Shown:
    """What pytest-benchmark requires of a fixture that timed something."""

    name: str
    fullname: str
    group: str
    extra_info: dict[str, Any]
    param: str | None = None
    params: dict[str, Any] | None = None
    cprofile_stats: Any = None
    has_error: bool = False


@dataclass
class Results:
    """Measurements of this run, for pytest-benchmark and for the terminal."""

    config: Any
    end: float
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    busy: dict[str, str] = field(default_factory=dict)
    ceilings: Any = None

    @property
    def time_is_up(self) -> bool:
        """Whether no further case may begin."""
        return time.monotonic() >= self.end

    def skip_and_note(self, planned: Planned, why: str) -> None:
        """Record why and skip the running test."""
        self.skipped.append(f"{planned.title}: {why}")
        pytest.skip(why)

    def note_failure(self, planned: Planned, why: str) -> str:
        """Record a failure; return its line for the file and for the test."""
        self.failed.append(f"{planned.title}: {why}")
        return self.failed[-1]

    def add(self, planned: Planned, measured: Any, ceilings: Any) -> list[str]:
        """Pass every time to pytest-benchmark; return what failed.

        pytest-benchmark times one function at a time. These took turns, so its own `Metadata` gets the times of the
        turns directly, without a fixture.
        """
        from pytest_benchmark.stats import Metadata

        self.ceilings = ceilings
        for one in measured.timed:
            name, info = one.variant.name, measured.record(one, ceilings) | {"group": planned.group}
            shown = _Shown(name, f"{planned.title}: {name}", planned.title, info)
            metadata = Metadata(shown, iterations=1, options={})
            for microseconds in one.times.each:
                metadata.update(microseconds / 1e6)
            self.config._benchmarksession.benchmarks.append(metadata)
            if info.get("busy") and one is measured.ours:
                self.busy[planned.title] = info["busy"]
        left_out = [one for one in measured.competitors if one.skipped is not None]
        self.skipped += [f"{planned.title}: {one.variant.name}: {one.skipped}" for one in left_out]
        wrong = [one for one in measured.competitors if one.failed is not None]
        return [self.note_failure(planned, f"{one.variant.name}: {one.failed}") for one in wrong]


def _device(config: pytest.Config) -> str:
    import torch

    return config.getoption("--benchmark-device") or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Any:
    from bench.core.session import Session

    option = pytestconfig.getoption
    small, threads, seconds = option("--benchmark-tiny"), option("--benchmark-threads"), option("--benchmark-seconds")
    return Session(_device(pytestconfig), bool(small), threads, seconds)


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Results:
    pytestconfig.stash[RESULTS] = Results(pytestconfig, pytestconfig.stash[END])
    return pytestconfig.stash[RESULTS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "planned" not in metafunc.fixturenames:
        return
    if not metafunc.config.getoption("--benchmark"):
        metafunc.parametrize("planned", [pytest.param(None, marks=pytest.mark.skip(reason=HOW), id="benchmarks")])
        return
    metafunc.parametrize("planned", list(_planned(metafunc.config)), ids=lambda planned: planned.title)


def _planned(config: pytest.Config) -> Iterator[Planned]:
    import torch

    from bench.cases import GROUPS
    from bench.cases.sizes import published, tiny

    device = torch.device(_device(config))
    sizes = tiny(device) if config.getoption("--benchmark-tiny") else published(device)
    for group, cases in GROUPS.items():
        yield from (Planned(group, case) for case in cases(sizes))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    if RESULTS in config.stash:
        import torch

        from bench.core.machine import describe_machine

        threads = {"device": _device(config), "threads": torch.get_num_threads()}
        machine_info["tss"] = describe_machine() | threads


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    if RESULTS in config.stash:
        from bench.core.machine import sources_digest

        commit_info["sources"] = sources_digest()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add what there is besides times; drop single turns, whose percentiles are in each entry."""
    found = config.stash.get(RESULTS, None)
    if found is None:
        return
    for one in output_json["benchmarks"]:
        one["stats"].pop("data", None)
    ceilings = None if found.ceilings is None else found.ceilings._asdict()
    output_json["tss"] = {
        "tiny": bool(config.getoption("--benchmark-tiny")), "ceilings": ceilings, "failed": found.failed,
        "skipped": found.skipped,
    }  # fmt: skip


def _not_compared(config: Any) -> str | None:
    """Return why --benchmark-compare compared nothing, or None."""
    compared = config._benchmarksession.compared_mapping
    if RESULTS not in config.stash or not config.getoption("benchmark_compare", None):
        return None
    if not compared:
        return "--benchmark-compare found no file: name one, or keep one with --benchmark-save"
    now = {one.fullname for one in config._benchmarksession.benchmarks}
    if any(now & known.keys() for known in compared.values()):
        return None
    return f"--benchmark-compare: no case of this run is in {', '.join(map(str, compared))}, so nothing was compared"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that compared nothing; runs after pytest-benchmark has written and read its files."""
    if session.config.getoption("--benchmark") and _not_compared(session.config) is not None:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's tables
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    write = terminalreporter.write_line
    if not config.getoption("--benchmark"):
        write("bench/: nothing was timed; add --benchmark")
        return
    found = config.stash.get(RESULTS, None)
    if found is None:
        return
    if (why := _not_compared(config)) is not None:
        write(f"ERROR: {why}", red=True)
    if found.busy:
        write(f"BUSY MACHINE: {len(found.busy)} cases were measured beside other work; their numbers are marked:")
        for title, why in found.busy.items():
            write(f"  {title}: {why}")
    if not any(config.getoption(f"benchmark_{name}", None) for name in ("json", "save", "autosave")):
        write("numbers are shown and not kept: add --benchmark-json=FILE, which python -m bench.report reads")
