"""`tss run`: train a sequence of tasks, evaluate after each, and write a run folder with a report."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.cli import config_args, console
from tss.errors import ConfigError, StateError

if TYPE_CHECKING:
    from tss.run.config import RunConfig
    from tss.run.results import RunResult

RUNS = Path("runs")
MISUSED = 2


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "run", parents=parents, help="train a sequence of tasks", description=__doc__, allow_abbrev=False
    )
    config_args.add_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: a new one in runs/)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the folder with its own configuration; the result is the same bit for bit",
    )
    parser.add_argument("--quiet", action="store_true", help="print results only")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 if files of the results are damaged, 128 + the signal number if a signal stopped it."""
    if not config_args.chosen(args) and args.out is None and not args.resume:
        args.parser.print_help(sys.stderr)
        return MISUSED
    config, folder = what_and_where(args)
    from tss.run.processes import is_first
    from tss.run.sequence import run_sequence

    first = is_first()
    if first:
        config_args.tell_missing(config)
    if first and not args.quiet:
        print(f"run folder: {folder}", file=sys.stderr)
    with stopped_by_signals(), _progress(args.quiet or not first) as progress:
        try:
            result = run_sequence(config, folder, resume=args.resume, progress=progress)
        except KeyboardInterrupt as stop:
            name = stop.name if isinstance(stop, Stopped) else "SIGINT"
            with contextlib.suppress(OSError):  # SIGHUP means that the terminal may be gone
                words = ["tss", "run", "--out", str(folder), "--resume"]
                print(f"\ntss: stopped by {name}; continue with: {shlex.join(words)}", file=sys.stderr, flush=True)
            return 128 + signal.Signals[name].value
    if not first:
        return 0
    from tss.report import build

    report = build([folder], folder)
    print_result(result, report.path)
    return config_args.tell_damage(report.damage)


def what_and_where(args: argparse.Namespace) -> tuple[RunConfig, Path]:
    """Return the configuration and the run folder; with --resume, the configuration is the run's own.

    Raises:
        ConfigError: --resume without a folder and without anything to run.
        StateError: the folder to resume has no readable state.
    """
    if not args.resume:
        config, name = config_args.configuration(args)
        return config, args.out or default_folder(f"{name}-{config.method}", resume=False)
    if args.out is None:
        if not config_args.chosen(args):
            last = sorted(RUNS.glob("*/state/run.json"), key=lambda path: path.stat().st_mtime)
            hint = f", for example --out {last[-1].parent.parent}" if last else ""
            raise ConfigError(f"--resume: name the run folder with --out DIR{hint}")
        config, name = config_args.configuration(args)
        return config, default_folder(f"{name}-{config.method}", resume=True)
    from tss.run.folder import RunFolder

    files = RunFolder(args.out)
    if not files.state.is_file():
        files.check(resume=True)
        if not config_args.chosen(args):
            raise StateError(f"{args.out}: no run was started there, so there is nothing to resume; name what to run")
        return config_args.configuration(args)[0], args.out
    return config_args.configuration(args, files.load_state().config)[0], args.out


class Stopped(KeyboardInterrupt):
    """Raised when a signal asks the process to end."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP stop like Ctrl-C, unless they have another handler or are ignored, as under nohup."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(signal.Signals(number).name)

    taken = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                taken[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, before in taken.items():
            signal.signal(number, before)


def default_folder(name: str, *, resume: bool) -> Path:
    """Return runs/NAME, or runs/NAME-2, -3, … : the first free one, or on resume the last existing one."""
    candidates = [RUNS / name]
    while candidates[-1].exists():
        candidates.append(RUNS / f"{name}-{len(candidates) + 1}")
    return candidates[-2] if resume and len(candidates) > 1 else candidates[-1]


def print_result(result: RunResult, report: Path) -> None:
    """Print the matrix, the continual metrics, the time, and the path of the report."""
    from tss.report.names import duration
    from tss.report.tables import METRIC_NAMES

    print("\nMain metric of each task (column) after learning each task (row):\n")
    print("\n".join(console.matrix_lines(result.tasks, result.matrix, console.width())))
    print()
    rows = [
        [name, f"{value:+.2f}" if key == "bwt" else f"{value:.2f}"]
        for key, name in METRIC_NAMES.items()
        if (value := result.summary.get(key)) is not None
    ]
    console.print_table(["continual metric", "points"], rows, right=(1,))
    families = result.summary.get("families") or {}
    if len(families) > 1:
        print()
        cells = [
            [family, *("–" if value is None else f"{value:.2f}" for value in means.values())]
            for family, means in families.items()
        ]
        console.print_table(["family", *next(iter(families.values()))], cells, right=(1, 2, 3))
    print(f"\ntime    {duration(result.seconds)}\nreport  {report}")


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Yield a listener that shows progress and is closed before anything else is printed; None if quiet."""
    if quiet:
        yield None
        return
    from tss.run.progress import Console

    with contextlib.closing(Console()) as console:
        yield console
