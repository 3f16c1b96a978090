"""`tss study`: run several methods, task orders and seeds, and compare them."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.cli import config_args
from tss.cli.run import RUNS, Stopped, stopped_by_signals
from tss.errors import ConfigError
from tss.presets import study_names

if TYPE_CHECKING:
    from tss.study.engines import Engine
    from tss.study.folder import StudyFolder
    from tss.study.plan import Cell

MISUSED = 2


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "study",
        parents=parents,
        help="compare methods over task orders and seeds",
        description=f"{__doc__} Finished runs are skipped, interrupted runs resume, failed runs are retried.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG|key=value",
        help=f"YAML file or name of a study ({', '.join(study_names())}), then changes to the configuration of all "
        "runs",
    )
    parser.add_argument("--seeds", metavar="N|S,S,…", help="number of seeds, or a list of them; overrides the file")
    parser.add_argument("--data", metavar="DIR", help="folder of <family>/<task>/*.jsonl, or `generated`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="study folder (default: runs/study-NAME)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of runs at a time, which share the cores (default: 1)"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on the Ray cluster at ADDRESS (`auto`: the one on this machine); default ADDRESS: start a local one",
    )
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    parser.add_argument("--dry-run", action="store_true", help="list the runs without running them")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 if a run failed or is damaged, 128 + the signal number if a signal stopped it."""
    from tss.study.folder import StudyFolder

    sources = [word for word in args.words if "=" not in word]
    if not sources and args.out is None:
        args.parser.print_help(sys.stderr)
        return MISUSED
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers: at least 1, got {args.workers}")
    folder = StudyFolder(args.out or RUNS / f"study-{Path(sources[0]).stem}")
    cells = planned(args, sources)
    if args.dry_run:
        known = cells if cells is not None else folder.cells()
        for cell in known:
            print(f"{cell.name}{'  finished' if folder.finished(cell) else ''}")
        return 0
    if cells is None:
        folder.cells()  # raises any error before the folder is created
    with stopped_by_signals(), folder.lock():
        added = folder.fix(cells) if cells is not None else []
        if added and not args.quiet:
            print(f"the study grows by {len(added)} runs, {added[0].name} for example", file=sys.stderr)
        cells = folder.cells()
        try:
            failed = execute(args, folder, cells)
        except KeyboardInterrupt as stop:
            name = stop.name if isinstance(stop, Stopped) else "SIGINT"
            with contextlib.suppress(OSError):
                words = ["tss", "study", "--out", str(folder.path)]
                words += ["--workers", str(args.workers)] if args.workers else []
                words += ["--ray", args.ray] if args.ray else []
                print(f"\ntss: stopped by {name}; continue with: {shlex.join(words)}", file=sys.stderr, flush=True)
            return 128 + signal.Signals[name].value
    from tss.study.report import build

    report = build(folder.path)
    print(report.summary)
    print(f"report  {report.path}")
    for name, error in failed.items():
        print(f"tss: {name} failed: {error}", file=sys.stderr)
    return config_args.tell_damage(report.damage) or (1 if failed else 0)


def planned(args: argparse.Namespace, sources: list[str]) -> list[Cell] | None:
    """Return the runs that the command line requests; None for those of the folder's own plan.

    Raises:
        ConfigError: a file is not a study, there are several files, or changes are given without a file.
    """
    from tss.study.plan import cells_of, load_study

    overrides = [word for word in args.words if "=" in word]
    if not sources:
        if overrides or args.seeds or args.data:
            raise ConfigError("key=value, --seeds and --data change what a study's file says: name the file too")
        return None
    if len(sources) > 1:
        raise ConfigError(f"one study at a time, got {' and '.join(map(repr, sources))}")
    return cells_of(load_study(sources[0], overrides, seeds=seeds_of(args.seeds), data=args.data))


def seeds_of(text: str | None) -> int | list[int] | None:
    """Parse the number of seeds ("5"), or the list of seeds ("2021,2022"; a single one "2021,").

    Raises:
        ConfigError: the text is neither, or the number is 0.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--seeds: expected a number of seeds, such as 5, or seeds, such as 2021,2022; got {text!r}")
    if "," in text:
        return [int(part) for part in parts]
    if int(parts[0]) < 1:
        raise ConfigError(f"--seeds: at least 1, got {int(parts[0])}")
    return int(parts[0])


def execute(args: argparse.Namespace, folder: StudyFolder, cells: list[Cell]) -> dict[str, str]:
    """Run the unfinished runs; return the errors of failed ones by name."""
    from tss.study.execute import run_study
    from tss.study.progress import Console

    if all(folder.finished(cell) for cell in cells):
        return {}
    engine = engine_of(args, folder)
    if args.quiet:
        return run_study(folder, cells, engine).failed
    print(f"study folder: {folder.path}, {len(cells)} runs, {engine.capacity} at a time", file=sys.stderr)
    with contextlib.closing(Console()) as console:
        return run_study(folder, cells, engine, console).failed


def engine_of(args: argparse.Namespace, folder: StudyFolder) -> Engine:
    """Return the engine that executes the runs.

    Raises:
        ConfigError: --ray without the ray package.
        StateError: no cluster responds at the address.
    """
    from tss.study.engines import Processes, RayTasks, usable_cores

    if args.ray:
        return RayTasks(folder.path, args.ray, args.workers, 1)
    workers = args.workers or 1
    return Processes(folder.path, workers, max(1, usable_cores() // workers))
