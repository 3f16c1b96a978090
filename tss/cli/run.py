"""`tss run`: learn a sequence of tasks, evaluate all that are learned after each, write a run folder and its report."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.cli import configuring, console

if TYPE_CHECKING:
    from tss.run.results import RunResult

RUNS = Path("runs")
METRICS = ("average", "learning", "forgetting", "forgetting_chaudhry", "forgetting_max", "bwt", "fwt")


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    parser = subparsers.add_parser(
        "run", parents=parents, help="learn a sequence of tasks", description=__doc__, allow_abbrev=False
    )
    configuring.add_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default: a new one under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, bit for bit")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the results")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    config, name = configuring.configuration(args)
    folder = args.out if args.out is not None else default_folder(f"{name}-{config.method}", resume=args.resume)
    configuring.tell_missing(config)
    from tss.run.sequence import run_sequence

    if not args.quiet:
        print(f"run folder: {folder}", file=sys.stderr)
    with _progress(args.quiet) as progress:
        try:
            result = run_sequence(config, folder, resume=args.resume, progress=progress)
        except KeyboardInterrupt:
            print(f"\ntss: stopped; go on with: {_resume_command(args, folder)}", file=sys.stderr)
            return 130
    from tss.report import build

    report = build([folder], folder)
    print_result(result, report)
    return 0


def default_folder(name: str, *, resume: bool) -> Path:
    """runs/NAME, or runs/NAME-2, -3, … : the first free one, or on resume the last one that is there."""
    candidates = [RUNS / name]
    while candidates[-1].exists():
        candidates.append(RUNS / f"{name}-{len(candidates) + 1}")
    return candidates[-2] if resume and len(candidates) > 1 else candidates[-1]


def print_result(result: RunResult, report: Path) -> None:
    """The matrix, the continual metrics, the time, and where the report is."""
    from tss.report.names import duration

    print("\nMain metric of each task (column) after learning each task (row):\n")
    print("\n".join(console.matrix_lines(result.tasks, result.matrix, console.width())))
    print()
    rows = [[name, f"{result.summary[name]:+.2f}" if name == "bwt" else f"{result.summary[name]:.2f}"]
            for name in METRICS if result.summary.get(name) is not None]  # fmt: skip
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
    """A listener that shows progress, taken off the screen before anything else is said; None when quiet."""
    if quiet:
        yield None
        return
    from tss.run.progress import Console

    with contextlib.closing(Console()) as console:
        yield console


def _resume_command(args: argparse.Namespace, folder: Path) -> str:
    words = ["tss", "run", *args.words]
    for key in ("preset", "variant", *configuring.SHORTCUTS):
        if getattr(args, key) is not None:
            words += [f"--{key}", getattr(args, key)]
    words += ["--available-only"] if args.available_only else []
    return shlex.join([*words, "--out", str(folder), "--resume"])
