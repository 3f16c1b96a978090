"""`tss report`: write an HTML page with plots and tables of one run, several runs, or a study."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tss.cli import config_args
from tss.errors import StateError


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "report", parents=parents, help="write a report of one or more runs", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders, of which the first gives the headline numbers; or a study folder",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="output folder (default: the run folder, or `report` for several runs)"
    )
    parser.add_argument(
        "--one",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="runs of single tasks, for the transfer metric",
    )
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="also write curves for `tensorboard --logdir DIR`"
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="also upload the runs to this Weights & Biases project")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 if a run is damaged, which the report then also states."""
    from tss.report import build
    from tss.study.folder import is_study

    if studies := [folder for folder in args.runs if is_study(folder)]:
        return report_study(args, studies)
    output = args.out or (args.runs[0] if len(args.runs) == 1 else Path("report"))
    report = build(args.runs, output, one=args.one)
    print(report.path)
    export(args, args.runs)
    return config_args.tell_damage(report.damage)


def report_study(args: argparse.Namespace, studies: list[Path]) -> int:
    """Report a study; return 1 if one of its runs is damaged.

    Raises:
        StateError: a study was given with other folders, or with runs of single tasks, which its own plan includes.
    """
    from tss.study.folder import StudyFolder
    from tss.study.report import build

    if len(args.runs) > 1 or args.one:
        raise StateError(f"{studies[0]} is a study, which is reported by itself: give no other folder and no --one")
    report = build(studies[0], args.out)
    print(report.path)
    files = StudyFolder(studies[0])
    export(args, [files.run(cell) for cell in files.cells() if files.finished(cell)])
    return config_args.tell_damage(report.damage)


def export(args: argparse.Namespace, folders: list[Path]) -> None:
    """Export the runs to TensorBoard and Weights & Biases if requested, and print where."""
    from tss.report.export import to_tensorboard, to_wandb
    from tss.report.reading import read_run

    for run in map(read_run, folders if args.tensorboard or args.wandb else []):
        run.label = run.label if len(folders) == 1 else run.folder.name
        if args.tensorboard:
            print(to_tensorboard(run, args.tensorboard))
        if args.wandb:
            print(to_wandb(run, args.wandb))
