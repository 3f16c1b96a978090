"""`tss report`: one HTML page with plots and tables from one run, from several side by side, or from a study."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tss.cli import config_args
from tss.errors import StateError


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    parser = subparsers.add_parser(
        "report", parents=parents, help="write a report of one run or several", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders, the first gives the headline numbers; or one study's folder",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: the run, or `report` for several)"
    )
    parser.add_argument(
        "--one",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="runs of single tasks learned alone, for the transfer metric",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command; 1 if a run is damaged, which the report then says too."""
    from tss.report import build
    from tss.study.folder import is_study

    if studies := [folder for folder in args.runs if is_study(folder)]:
        return report_study(args, studies)
    output = args.out or (args.runs[0] if len(args.runs) == 1 else Path("report"))
    report = build(args.runs, output, one=args.one)
    print(report.path)
    return config_args.tell_damage(report.damage)


def report_study(args: argparse.Namespace, studies: list[Path]) -> int:
    """Reports a study; 1 if one of its runs is damaged.

    Raises:
        StateError: a study among other folders, or with runs of single tasks, which its own plan gives.
    """
    from tss.study.report import build

    if len(args.runs) > 1 or args.one:
        raise StateError(f"{studies[0]} is a study, which is reported by itself: give no other folder and no --one")
    report = build(studies[0], args.out)
    print(report.path)
    return config_args.tell_damage(report.damage)
